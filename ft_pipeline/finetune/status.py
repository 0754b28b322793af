"""How a process of a run ended: one small file each, written atomically, from which the parent tells preempted from failed from crashed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ft_pipeline.errors import FtError, Interrupted
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import write_atomic
from ft_pipeline.workers.child import Body
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, Message

RANKS = "ranks"
"""Folder below the run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The last words of a process."""

    rank: int
    state: Literal["complete", "preempted", "failed", "crashed"]
    step: int = 0
    """The last step that it made."""
    planned: int = 0
    checkpoint: str | None = None
    """Name of the newest checkpoint folder."""
    reason: str = ""


def status_path(folder: Path, rank: int) -> Path:
    """Where a process of a run folder writes its status."""
    return folder / RANKS / f"status-{rank}.json"


def read_status(folder: Path, rank: int) -> Status | None:
    """None: it wrote none, so it was killed or never got far enough."""
    path = status_path(folder, rank)
    return Status(**json.loads(path.read_bytes())) if path.is_file() else None


def with_status(body: Body, rank: int) -> Body:
    """The body of a job that writes its status when it ends, however it ends."""

    def told(job: Job, store: Store, mailbox: Mailbox) -> None:
        steps = _Steps(mailbox)
        ended = Status(rank=rank, state="complete")
        try:
            body(job, store, steps)  # type: ignore[arg-type]
        except BaseException as error:
            ended = replace(ended, state=_state_of(error), reason=str(error) or type(error).__name__)
            raise
        finally:
            newest = max((p.name for p in (job.folder / "checkpoints").glob("step-*")), default=None)
            ended = replace(ended, step=steps.done, planned=steps.planned, checkpoint=newest)
            write_atomic(status_path(job.folder, rank), json.dumps(asdict(ended)).encode())

    return told


@dataclass
class _Steps:
    """Passes messages on and remembers how far training is."""

    mailbox: Callable[[Message], None]
    done: int = 0
    planned: int = 0

    def __call__(self, message: Message) -> None:
        if message.kind == "progress" and message.task == "train":
            self.done, self.planned = int(message.done), int(message.total)
        self.mailbox(message)


def _state_of(error: BaseException) -> Literal["preempted", "failed", "crashed"]:
    if isinstance(error, Interrupted):
        return "preempted"
    return "failed" if isinstance(error, FtError) else "crashed"
