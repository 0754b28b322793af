"""The stub launcher of the platform's load: runs are folders, each held by a shell for one to three seconds; and its dispatcher process.

python -m ft_pipeline_tests.load_runs FOLDER PLACES, over the home that FT_HOME and FT_CATALOG name.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ft_pipeline import settings
from ft_pipeline.jobs.dispatch import Ending, RunState, tick
from ft_pipeline.jobs.queue import Rules
from ft_pipeline.store.platform.open import open_records
from ft_pipeline.store.platform.rows import TrainingJob

SECONDS = (1.0, 3.0)
LOST_AFTER_SECONDS = 5
"""A run whose process never began: the dispatcher was killed between the two."""


class ShellRuns:
    """The launcher of the load: runs are folders, made atomically; each process appends its run_key to one log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def launch(self, job: TrainingJob) -> None:
        place = self.folder / job.run_key
        try:
            place.mkdir()
        except FileExistsError:
            return
        seconds = random.uniform(*SECONDS)
        words = f'echo "$1" >> log; : > "$1/began"; sleep {seconds:.2f}; : > "$1/ended"'
        subprocess.Popen(
            ["sh", "-c", words, "sh", job.run_key], cwd=self.folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def states(self, jobs: Sequence[TrainingJob]) -> dict[str, RunState]:
        there = {job.run_key: self.folder / job.run_key for job in jobs}
        return {
            key: RunState(run_id=key, phase="ended" if self._is_over(place) else "going")
            for key, place in there.items()
            if place.is_dir()
        }

    def _is_over(self, place: Path) -> bool:
        waited = time.time() - place.stat().st_mtime
        return (place / "ended").exists() or (not (place / "began").exists() and waited > LOST_AFTER_SECONDS)

    def stop(self, state: RunState) -> None:
        raise NotImplementedError("nobody cancels here")

    def ending(self, state: RunState) -> Ending:
        if not (self.folder / state.run_id / "ended").exists():
            return Ending(outcome="stopped", error={"message": "its process never began"})
        return Ending(outcome="complete", model="load/model@1", promotion={"blocked": False})


def dispatch(folder: Path, places: int) -> None:
    """The dispatcher process."""
    records = open_records(settings.load())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    (folder / "ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    while True:
        began = time.monotonic()
        done = tick(records, ShellRuns(folder), Rules(places=places), clock=lambda: datetime.now(UTC))
        if done.troubles:
            print(done.told(), file=sys.stderr)
        time.sleep(max(0.0, 1 - (time.monotonic() - began)))


if __name__ == "__main__":
    dispatch(Path(sys.argv[1]), int(sys.argv[2]))
