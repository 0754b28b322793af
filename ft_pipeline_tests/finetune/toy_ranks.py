"""A job of several processes without torch: each does what the section says for its rank. Used by test_ranks."""

from __future__ import annotations

import os
import signal
import sys
import time

from ft_pipeline.errors import Interrupted, StorageError, TrainingFailed
from ft_pipeline.finetune.ranks import run_alone_or_ranked
from ft_pipeline.settings import rank_here
from ft_pipeline.store.artifacts import Store
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, progress
from ft_pipeline.workers.preemption import stop_request


def body(job: Job, _store: Store, mailbox: Mailbox) -> None:
    """`section[rank]`: complete, fail, disk, crash, kill, hang (deaf), wait (until stopped)."""
    here = rank_here()
    assert here is not None
    stop, do = stop_request(), job.section[str(here.rank)]
    (job.folder / f"pid-{here.rank}").write_text(str(os.getpid()))
    progress(mailbox, "train", 3, total=9, unit="step")
    if do == "fail":
        raise TrainingFailed("loss nan")
    if do == "disk":
        raise StorageError("no space left")
    if do == "crash":
        raise RuntimeError("a bug")
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "leave":
        os._exit(0)
    while do in ("hang", "wait"):
        time.sleep(0.02)
        if do == "wait" and stop.asked:
            (job.folder / f"saved-{here.rank}").write_text("saved")
            raise Interrupted("stopped after step 3")


if __name__ == "__main__":
    sys.exit(run_alone_or_ranked(body, sys.argv))
