"""Runs a job as a child process of this machine: tails its messages, forwards a stop, never leaves it running alone."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.errors import FtError, Interrupted, StorageError, TrainingFailed, UserError
from ft_pipeline.settings import Settings, job_environment
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Listener, Message, log, read_messages
from ft_pipeline.workers.outcome import Outcome, outcome_of

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class LocalWorker:
    """A worker whose jobs are child processes."""

    settings: Settings
    store: Store

    def run(self, job: Job, listener: Listener) -> Artifact:
        """The artifact that the job publishes; found instead of made when the store has it.

        Raises TrainingFailed (exit 42 or a crash), Interrupted (exit 75: run again to resume), StorageError (exit 5: mend the disk, run
        again), UserError (another run holds the folder).
        """
        if found := self._found(job, listener):
            return found
        with exclusive(job.folder) as lock:
            # the process that held the lock may have published it meanwhile
            if found := self._found(job, listener):
                return found
            code = self._run_child(job, listener, lock)
        if outcome_of(code) is not Outcome.COMPLETE:
            raise _failure(job, code)
        made = self.store.find(job.spec)
        if made is None:
            raise TrainingFailed(
                f"{job.name} exited 0 and published nothing", why="Success needs proof: a whole artifact."
            )
        return made

    def _found(self, job: Job, listener: Listener) -> Artifact | None:
        if found := self.store.find(job.spec):
            text = f"reused {job.spec.kind} {found.ref.digest[:12]}: same inputs, nothing to compute"
            log(listener, text, reused=True)
        return found

    def _run_child(self, job: Job, listener: Listener, lock: int) -> int:
        messages = job.folder / "messages.jsonl"
        offset = messages.stat().st_size if messages.exists() else 0
        with (job.folder / "log.txt").open("ab") as output:
            child = subprocess.Popen(
                [interpreter(job, self.settings), "-m", job.module, str(job.write()), str(os.getpid())],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env=job_environment(self.settings), pass_fds=(lock,),
            )  # fmt: skip
            try:
                while True:
                    code = child.poll()
                    for message, offset in read_messages(messages, offset):  # noqa: B007, B020
                        listener(message)
                    if code is not None:
                        return code
                    time.sleep(POLL_SECONDS)
            except BaseException:
                stop(child, job.placement.grace_seconds)
                raise


def interpreter(job: Job, settings: Settings) -> str:
    """The Python that has what a job needs. Raises UserError when that environment was never made."""
    if job.environment == "ours":
        return sys.executable
    if not settings.export_python.is_file():
        raise UserError(
            f"{job.name} needs another environment, and there is no {settings.export_python}",
            why="llmcompressor pins other releases of transformers and compressed-tensors than training and vLLM.",
            cure="make setup-export, or point FT_EXPORT_PYTHON at a Python that has requirements-export.lock and this package",
        )
    return str(settings.export_python)


def stop(child: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """SIGTERM, so that it saves a checkpoint; SIGKILL after the grace. No process survives."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextmanager
def exclusive(folder: Path, *, wait_seconds: float = 30) -> Iterator[int]:
    """Holds the folder's lock and yields its descriptor, so that two trainers never write one run.

    The child inherits the descriptor: when an orchestrator is killed, the lock stays with the trainer until it has saved and ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        until = time.monotonic() + wait_seconds
        while not _locked(file.fileno()):
            if time.monotonic() > until:
                raise UserError(
                    f"another process is running {folder.name[:12]} in {folder}",
                    why="Two trainers on one run folder would mix their checkpoints.",
                    cure="wait for it, or stop it; its checkpoints are kept",
                )
            time.sleep(POLL_SECONDS)
        yield file.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _failure(job: Job, code: int) -> FtError:
    """What the exit code and the child's last error message say."""
    said = [m for m, _ in read_messages(job.folder / "messages.jsonl", 0) if m.kind == "error"]
    last_words = f"killed by signal {-code}" if code < 0 else _last_lines(job.folder / "log.txt")
    text = said[-1].text if said else last_words
    if outcome_of(code) is Outcome.PREEMPTED:
        return Interrupted(
            f"{job.name} was stopped", why="Its work is in a checkpoint.", cure="run the same command again: it resumes"
        )
    if outcome_of(code) is Outcome.STORAGE:
        return StorageError(
            f"{job.name} stopped because of its storage: {text}",
            why="No work is lost but what came after the newest whole checkpoint.",
            cure=f"mend the storage, then run the same command again: it resumes. The whole log is {job.folder / 'log.txt'}",
        )
    if outcome_of(code) is Outcome.FAILED:
        return TrainingFailed(f"{job.name} failed for good: {text}", cure=f"the whole log is {job.folder / 'log.txt'}")
    return TrainingFailed(
        f"{job.name} crashed with exit code {code}: {text}",
        cure=f"the whole log is {job.folder / 'log.txt'}; the same command resumes from the newest checkpoint",
    )


def _last_lines(path: Path, lines: int = 12) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.is_file() else "it said nothing"


def error_message(text: str) -> Message:
    """The message with which a child explains its exit."""
    return Message(kind="error", text=text)
