"""One process of a group that trains several jobs one after the other: starting processes costs 8 s, a tiny run 1 s.

`python -m ft_pipeline_tests.finetune.ranked work.json` with RANK and WORLD_SIZE. Each entry of work.json: job (job.json), store and
work (folders), rendezvous, fails (for good), and stop: null, or {rank, step}: SIGTERM to that process once it has made so many steps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ft_pipeline.errors import FtError
from ft_pipeline.finetune import main
from ft_pipeline.finetune.status import read_status, with_status
from ft_pipeline.settings import rank_here
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import Bucket
from ft_pipeline.workers.job import Job, read_job
from ft_pipeline.workers.messages import Mailbox


def work(path: Path) -> None:
    """Does every entry; what became of each is in the status files of its run folder."""
    here = rank_here()
    assert here is not None
    for entry in json.loads(path.read_text()):
        job = read_job(Path(entry["job"]))
        os.environ["FT_RENDEZVOUS"] = entry["rendezvous"]
        store = Store(Bucket(entry["store"]), Path(entry["work"]))
        if entry["stop"] and entry["stop"]["rank"] == here.rank:
            _stop_after(job, here.rank, entry["stop"]["step"])
        try:
            with_status(main.body, here.rank)(job, store, Mailbox(job.folder / "messages.jsonl"))
        except FtError:
            status = read_status(job.folder, here.rank)
            assert status is not None and status.state == ("failed" if entry["fails"] else "preempted"), status


def _stop_after(job: Job, rank: int, step: int) -> None:
    """SIGTERM to this process once its own metrics have so many new lines."""
    path = job.folder / ("metrics.jsonl" if rank == 0 else f"ranks/{rank}/metrics.jsonl")

    def send() -> None:
        while not path.is_file() or path.read_bytes().count(b"\n") < step:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()


def entry(
    job: Job, store: Store, name: str, *, stop: dict[str, Any] | None = None, fails: bool = False
) -> dict[str, Any]:
    """One entry of work.json; writes job.json."""
    job.folder.mkdir(parents=True, exist_ok=True)
    return {
        "job": str(job.write()), "store": store.bucket.root, "work": str(store.work),
        "rendezvous": f"file://{job.folder / f'rendezvous-{name}'}", "stop": stop, "fails": fails,
    }  # fmt: skip


if __name__ == "__main__":
    work(Path(sys.argv[1]))
