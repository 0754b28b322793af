"""`python -m ft_pipeline.workers.kubernetes.member job.json module`: one process of several nodes, between the rendezvous and its module.

Only here is it certain that the pods of the attempt before have ended and sent their checkpoint: index 0 is replaced after its pod has
ended, and no process starts before index 0 has come. Fetched earlier, two nodes could go on from different steps.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ft_pipeline import settings
from ft_pipeline.errors import StorageError
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.workers.job import Job, read_job
from ft_pipeline.workers.kubernetes.carried import Carrier
from ft_pipeline.workers.outcome import STORAGE

FETCHED, LEADS = ".fetched", ".leads"
PATIENCE_SECONDS, POLL_SECONDS = 1800.0, 0.1


def main(path: Path, module: str) -> int:
    """Becomes the module once the run's files are here; returns only to say that they are not."""
    here = settings.load()
    try:
        _fetch(path)
    except StorageError as error:
        sys.stdout.write(f"{error}\n")
        return STORAGE
    words = [sys.executable, "-u", "-m", module, str(path)]
    return os.execve(sys.executable, words, settings.child_environment(here))  # noqa: S606 - never returns


def leads(job: Job) -> bool:
    """True on the node whose disk gets the checkpoints: there is the process of rank 0."""
    return (job.folder / LEADS).exists()


def _fetch(path: Path) -> None:
    """Process 0 of each node brings the files, the others wait for it."""
    where, job = settings.rank_here(), read_job(path)
    if where is None or where.local_rank == 0:
        Carrier(open_store(settings.load()), job.spec.fingerprint, job.folder).fetch()
        (job.folder / FETCHED).touch()
    if where is not None and where.rank == 0:
        (job.folder / LEADS).touch()
    _wait_for(job.folder / FETCHED)


def _wait_for(path: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise StorageError(
                f"the run's files did not come within {PATIENCE_SECONDS:.0f} s", cure="look at process 0"
            )
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
