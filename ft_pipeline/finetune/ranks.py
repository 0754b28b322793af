"""The parent of a run of several processes: starts them, forwards a stop, ends all when one dies, and gives the one exit code.

Our own parent and not torchrun, which returns 1 after SIGTERM whatever its workers exit with (design note, Preemption) and takes
a torch import of its own. A process that torchrun started (RANK in the environment) works all the same.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ft_pipeline.finetune.status import RANKS, Status, read_status, with_status
from ft_pipeline.settings import rank_environment, rank_here
from ft_pipeline.workers.child import Body, die_with_parent, run_child
from ft_pipeline.workers.job import Job, read_job
from ft_pipeline.workers.local import error_message
from ft_pipeline.workers.messages import Mailbox
from ft_pipeline.workers.outcome import COMPLETE, FAILED_FOR_GOOD, PREEMPTED, STORAGE
from ft_pipeline.workers.preemption import stop_request

POLL_SECONDS = 0.05
SETTLE_SECONDS = 5.0
"""After one process died the others find out by themselves (gloo) or hang for ever (NCCL): so long they have to say goodbye."""
GRACE_MARGIN_SECONDS = 2.0
"""The parent gives up so long before its own starter kills it, so that it can still kill the processes."""
CRASHED = 1


def run_alone_or_ranked(body: Body, argv: list[str]) -> int:
    """The exit code of a job's `main`: the body in this process, or in `placement.processes` of them under this one."""
    here = rank_here()
    if here is not None:
        return run_child(with_status(body, here.rank), argv)
    job = read_job(Path(argv[1]))
    if job.placement.processes == 1:
        return run_child(body, argv)
    if len(argv) > 2:
        die_with_parent(int(argv[2]))
    return Parent(job, Path(argv[1])).run()


@dataclass
class Parent:
    """The processes of one job and how they ended."""

    job: Job
    path: Path
    """Of job.json."""
    stopped_at: float | None = None
    _ranks: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _first: int | None = None
    """The first process that ended otherwise than complete or preempted."""
    _first_at: float = 0

    def run(self) -> int:
        """Starts the processes and waits for the last. None survives this call."""
        heard = stop_request().asked
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        if heard:
            return PREEMPTED
        shutil.rmtree(self.job.folder / RANKS, ignore_errors=True)
        (self.job.folder / RANKS).mkdir(parents=True)
        rendezvous = f"file://{self.job.folder / RANKS / f'rendezvous-{secrets.token_hex(4)}'}"
        try:
            for rank in range(self.job.placement.processes):
                self._ranks.append(self._started(rank, rendezvous))
            if self.stopped_at is not None:  # the signal came while they were being started
                self._stop()
            while any(process.poll() is None for process in self._ranks):
                self._watch()
                time.sleep(POLL_SECONDS)
            self._watch()
        finally:
            self._kill()
        return self._verdict()

    def _started(self, rank: int, rendezvous: str) -> subprocess.Popen[bytes]:
        size = self.job.placement.processes
        return subprocess.Popen(
            [sys.executable, "-m", self.job.module, str(self.path), str(os.getpid())],
            env=rank_environment(rank, size, rendezvous),
            stdin=subprocess.DEVNULL,
            close_fds=False,  # the lock of the run folder stays with the last process that works on it
        )

    def _stop(self, *_: object) -> None:
        """Forwards the stop. The processes agree on the step after which all of them leave."""
        self.stopped_at = self.stopped_at or time.monotonic()
        for process in self._ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _watch(self) -> None:
        now = time.monotonic()
        codes = [process.poll() for process in self._ranks]
        if self._first is None:
            died = [rank for rank, code in enumerate(codes) if code not in (None, COMPLETE, PREEMPTED)]
            if died:
                self._first, self._first_at = _culprit(died, codes), now
        grace = max(1.0, self.job.placement.grace_seconds - GRACE_MARGIN_SECONDS)
        too_long = self.stopped_at is not None and now - self.stopped_at > grace
        if too_long or (self._first is not None and now - self._first_at > SETTLE_SECONDS):
            self._kill()

    def _kill(self) -> None:
        for process in self._ranks:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _verdict(self) -> int:
        codes = [process.returncode for process in self._ranks]
        said = [read_status(self.job.folder, rank) for rank in range(len(codes))]
        code = exit_code_of(codes, said)
        if code == CRASHED and self.stopped_at is not None and -signal.SIGTERM in codes:
            return PREEMPTED  # stopped before all of them listened: nothing was trained
        if code not in (COMPLETE, PREEMPTED):
            first = self._first or 0
            status = said[first]
            reason = status.reason if status and status.reason else _ended(codes[first])
            text = f"process {first} of {len(codes)}: {reason}"
            Mailbox(self.job.folder / "messages.jsonl")(error_message(text))
        return code


def exit_code_of(codes: Sequence[int], said: Sequence[Status | None]) -> int:
    """One exit code for all: 42 when one failed for good, 5 when one's disk failed, 0 or 75 when all say so and wrote it down, else a crash (1).

    A process that exits 0 or 75 without a status file is no proof of anything.
    """
    for code in (FAILED_FOR_GOOD, STORAGE):
        if code in codes:
            return code
    for code, state in ((COMPLETE, "complete"), (PREEMPTED, "preempted")):
        if all(c == code for c in codes) and all(s is not None and s.state == state for s in said):
            return code
    return CRASHED


def _culprit(died: Sequence[int], codes: Sequence[int | None]) -> int:
    """Among those found dead at once: one that failed for good or was killed explains the others, whose connection broke."""
    return min(died, key=lambda rank: codes[rank] == CRASHED)


def _ended(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code} and said nothing"
