"""A child `main` for the worker's tests: `section.do` says how it behaves. No torch, under a second."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

from ft_pipeline.errors import Interrupted, StorageError, TrainingFailed
from ft_pipeline.store.artifacts import Store
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, log, progress


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    (job.folder / "pid").write_text(str(os.getpid()))
    do = job.section["do"]
    log(mailbox, f"doing {do}")
    if do == "fail":
        raise TrainingFailed("step 3: loss nan", cure="a lower rate")
    if do == "crash":
        raise RuntimeError("a bug")
    if do == "fill the disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if do == "lose the store":
        raise StorageError("no answer from S3 while writing checkpoints")
    if do == "kill itself":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "nothing":
        return
    for step in range(int(job.section.get("steps", 3))):
        progress(mailbox, "toy", step + 1, total=int(job.section.get("steps", 3)), unit="step")
        time.sleep(job.section.get("seconds", 0.0))
        if asked:
            (job.folder / "saved").write_text(str(step))
            raise Interrupted("stopped")
    with store.publish(job.spec) as draft:
        (draft.folder / "made.txt").write_text("made")
        draft.execution["pid"] = os.getpid()


if __name__ == "__main__":
    sys.exit(run_child(body, sys.argv))
