"""The one table of exit codes, used by trainers, launchers and clients."""

from __future__ import annotations

from enum import StrEnum

COMPLETE = 0
STORAGE = 5
FAILED_FOR_GOOD = 42
PREEMPTED = 75
STOPPED = 143


class Outcome(StrEnum):
    """What an ended process means."""

    COMPLETE = "complete"
    """Finished, with proof in its artifact."""
    FAILED = "failed"
    """NaN loss, bad data, a refused job: never retried."""
    STORAGE = "storage"
    """A store or disk does not answer or is full: cure it, then resume from the newest whole checkpoint."""
    PREEMPTED = "preempted"
    """Stopped by a signal: resume from the newest whole checkpoint."""
    CRASHED = "crashed"
    """Anything else: out of memory, killed, a bug."""


def outcome_of(exit_code: int) -> Outcome:
    """What an exit code means; a negative code is the signal that killed the process (subprocess convention)."""
    if exit_code == COMPLETE:
        return Outcome.COMPLETE
    if exit_code == STORAGE:
        return Outcome.STORAGE
    if exit_code == FAILED_FOR_GOOD:
        return Outcome.FAILED
    if exit_code in (PREEMPTED, STOPPED, -15):
        return Outcome.PREEMPTED
    return Outcome.CRASHED
