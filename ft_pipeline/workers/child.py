"""The frame of every child `main`: read job.json, run, publish, exit with the code of the one table."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from ft_pipeline import settings
from ft_pipeline.errors import FtError, Interrupted, StorageError
from ft_pipeline.store.artifacts import Store, open_store
from ft_pipeline.store.files import storage_error
from ft_pipeline.workers.job import Job, read_job
from ft_pipeline.workers.local import error_message
from ft_pipeline.workers.messages import Mailbox
from ft_pipeline.workers.outcome import COMPLETE, FAILED_FOR_GOOD, PREEMPTED, STORAGE

Body = Callable[[Job, Store, Mailbox], None]
"""Does the work and publishes `job.spec`. Raises Interrupted after a checkpoint, StorageError when a disk fails, any other FtError when it fails for good."""


_parent: int | None = None


def run_child(body: Body, argv: list[str]) -> int:
    """The exit code of one job: 0, 5, 42 or 75. An unexpected exception is a crash: traceback in the log, exit 1.

    argv: the program, job.json, and optionally the process id of the parent that must outlive it.
    """
    if len(argv) > 2:
        die_with_parent(int(argv[2]))
    job = read_job(Path(argv[1]))
    mailbox = Mailbox(job.folder / "messages.jsonl")
    try:
        body(job, open_store(settings.load()), mailbox)
    except Interrupted as stop:
        mailbox(error_message(str(stop)))
        return PREEMPTED
    except StorageError as error:
        return _storage(error, mailbox)
    except FtError as error:
        mailbox(error_message(str(error)))
        return FAILED_FOR_GOOD
    except Exception as error:
        if isinstance(error, OSError) and (told := storage_error(error, f"running {job.name}")):
            return _storage(told, mailbox)
        traceback.print_exc()
        mailbox(error_message(traceback.format_exc(limit=-3)))
        raise
    return COMPLETE


def _storage(error: StorageError, mailbox: Mailbox) -> int:
    with contextlib.suppress(OSError):  # the disk that is full may be the one of the log and the messages
        traceback.print_exc()
        mailbox(error_message(str(error)))
    return STORAGE


def die_with_parent(parent: int) -> None:
    """Asks Linux for a SIGTERM when the parent dies, so that a killed orchestrator leaves no trainer behind (scenario 6).

    Process ids are compared, not `getppid() == 1`: in a container the parent may well be process 1.
    """
    global _parent
    _parent = parent
    if sys.platform == "linux":
        _at_parents_death(signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def dying_with_parent_at_once() -> Iterator[None]:
    """Inside, a dead parent ends this process without a farewell: it waits in C++ for others that will not come, and has nothing to save.

    Found by fault injection: a rank whose parent was killed while it started waited half an hour for its peer, holding the lock.
    """
    if _parent is None or sys.platform != "linux":
        yield
        return
    _at_parents_death(signal.SIGKILL)
    if os.getppid() != _parent:
        os._exit(PREEMPTED)
    try:
        yield
    finally:
        _at_parents_death(signal.SIGTERM)


def _at_parents_death(number: int) -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
