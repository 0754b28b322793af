"""One look of the dispatcher: gives free places to queued jobs, starts runs, follows them to their end, carries out wishes.

Level-triggered: it compares what the rows say with what runs there are and does what is missing. Whatever is killed between two of
its steps, the next look goes on from what is written down; nothing is remembered here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Protocol

from ft_pipeline.errors import StorageError
from ft_pipeline.jobs.queue import Rules, decide
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import LIVE, JobStatus, TrainingJob

LEASE_SECONDS = 30
"""A launch of which no run is to be seen after so long is made again, with the same run_key."""
LOST_SECONDS = 900
"""A launch of which no run came in all this time is given up: the job goes back into the queue."""
MOST_FRUITLESS = 5
"""Launches in a row that were lost without a newer step; then the job has failed."""

Phase = Literal["starting", "going", "stopping", "ended"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """A run as its launcher sees it."""

    run_id: str
    phase: Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a run ended.

    complete: everything was made. blocked: trained and examined, and the gate did not pass. failed: for good. stopped: it was
    interrupted or lost and can go on from its checkpoints. cancelled: somebody ended it.
    """

    outcome: Literal["complete", "blocked", "failed", "stopped", "cancelled"]
    model: str | None = None
    """`tenant/name@N` that it registered."""
    promotion: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    """{code, message, param}."""
    trained_tokens: int | None = None


class Launcher(Protocol):
    """Starts and ends runs."""

    def launch(self, job: TrainingJob) -> None:
        """Starts the run of a job's present attempt. Called again for the same `run_key` it starts no second one."""
        ...

    def states(self, jobs: Sequence[TrainingJob]) -> Mapping[str, RunState]:
        """run_key -> state, for those of the jobs whose run exists."""
        ...

    def stop(self, state: RunState) -> None:
        """Asks a run to end after saving; one that has not begun does not begin."""
        ...

    def ending(self, state: RunState) -> Ending:
        """How an ended run ended."""
        ...


@dataclass(kw_only=True)
class Tick:
    """What one look did; for the log."""

    released: list[str] = field(default_factory=list)
    launched_again: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """What could not be done for a job; the next look tries again."""

    def told(self) -> str:
        """In a sentence."""
        parts = {
            "released": self.released, "launched again": self.launched_again, "told to stop": self.stopped,
            "ended": self.ended, "troubles": self.troubles,
        }  # fmt: skip
        return "; ".join(f"{name}: {', '.join(found)}" for name, found in parts.items() if found)


def tick(records: Records, launcher: Launcher, rules: Rules, *, clock: Callable[[], datetime]) -> Tick:
    """One look. Raises StorageError when the database does not answer; then everything not done is done by the next."""
    done = Tick()
    live = records.find_jobs(statuses=LIVE)
    states = launcher.states(live) if live else {}
    for job in live:
        try:
            _follow(_Look(records, launcher, done, clock()), job, states.get(job.run_key))
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - the others' places and wishes do not wait for this one; it is told and tried again
            done.troubles.append(f"{job.id}: {type(error).__name__}: {error}")
    for job in records.release(lambda view: decide(view, rules, now=clock()).go):
        done.released.append(job.id)
        launcher.launch(job)
    return done


@dataclass(frozen=True)
class _Look:
    records: Records
    launcher: Launcher
    done: Tick
    now: datetime


def _follow(look: _Look, job: TrainingJob, state: RunState | None) -> None:
    """What is to be done about one live job."""
    if state is None:
        _without_run(look, job)
        return
    if state.phase == "ended":
        _end(look, replace(job, run_id=state.run_id), look.launcher.ending(state))
        return
    if job.run_id is None:
        look.records.set_run(job.id, attempt=job.attempt, run_id=state.run_id)
    if job.wish is not None and state.phase != "stopping":
        look.launcher.stop(state)
        look.done.stopped.append(job.id)


def _without_run(look: _Look, job: TrainingJob) -> None:
    """Released, and no run is to be seen. A run that comes late finds that it is not wanted and ends (see resources)."""
    if job.wish is not None:
        to: JobStatus = "cancelled" if job.wish == "cancel" else "paused"
        _move(look, job, to, message=f"{to} before its run began")
        return
    if job.run_id is not None:
        _again(look, job, Ending(outcome="stopped", error={"message": "its run was deleted from Dagster's history"}))
        return
    waited = (look.now - datetime.fromisoformat(job.released_at or job.queued_at)).total_seconds()
    if waited > LOST_SECONDS:
        _again(look, job, None)
    elif waited > LEASE_SECONDS:
        look.launcher.launch(job)
        look.done.launched_again.append(job.id)


def _end(look: _Look, job: TrainingJob, ending: Ending) -> None:
    """Moves a job whose run has ended. A wish names the end of a run that was interrupted, never of one that came to its own end."""
    match ending.outcome:
        case "complete" | "blocked":
            made: dict[str, Any] = {"fine_tuned_model": ending.model, "promotion": ending.promotion}
            if ending.trained_tokens is not None:
                made["trained_tokens"] = ending.trained_tokens
            text = f"{ending.model} is registered" if ending.model else "trained; its promotion is blocked by the gate"
            _move(look, job, "succeeded", message=text, level="info" if ending.model else "warn", **made)
        case "failed" if job.wish != "cancel":
            error = dict(ending.error or {"code": "failed", "message": "the run failed", "param": None})
            _move(look, job, "failed", message=error["message"], level="error", error=error)
        case _ if job.wish == "pause":
            _move(look, job, "paused", message="paused: its work is in a checkpoint")
        case "cancelled" | "failed":
            _move(look, job, "cancelled", message="cancelled: the run has ended")
        case _ if job.wish == "cancel":
            _move(look, job, "cancelled", message="cancelled: the run has ended")
        case _:
            _again(look, job, ending)


def _again(look: _Look, job: TrainingJob, ending: Ending | None) -> None:
    """Back into the queue, unless that has led nowhere several times in a row."""
    said = (ending.error or {}).get("message") if ending else "no run came of the launch"
    if look.records.fruitless_launches(job.id) >= MOST_FRUITLESS:
        text = f"given up after {MOST_FRUITLESS} launches without a newer step: {said or 'the run was lost'}"
        error = {"code": "lost", "message": text, "param": None}
        _move(look, job, "failed", message=text, level="error", error=error)
        return
    text = f"back in the queue, it goes on from its newest checkpoint: {said or 'the run was lost'}"
    _move(look, job, "queued", message=text, level="warn")


def _move(look: _Look, job: TrainingJob, to: JobStatus, *, message: str, level: str = "info", **fields: Any) -> None:
    fields["run_id"] = job.run_id
    moved = look.records.move(job.id, to, only_from=LIVE, attempt=job.attempt, message=message, level=level, **fields)
    if moved is not None:
        look.done.ended.append(f"{job.id} {to}")
