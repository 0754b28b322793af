"""A trainer that is killed or stopped in the middle ends, after the same command, in the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from ft_pipeline.errors import Interrupted, TrainingFailed
from ft_pipeline.finetune.launch import train_job
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import Bucket
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.local import LocalWorker
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def road(home, store, tmp_path, monkeypatch):
    """A job of many small steps, the worker, and what an uninterrupted run of it gives."""
    monkeypatch.setenv("FT_MLFLOW", "off")
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(60), validation=6), base)
    recipe = tiny.recipe(epochs=60)
    whole = tiny.train_here(_copy(store, tmp_path), recipe, shards, base)
    place = Placement(checkpoint_steps=5)
    job = train_job(recipe, shards=shards, base=base, work=home.work, placement=place)
    return job, LocalWorker(home, store), whole


def _copy(store: Store, tmp_path: Path) -> Store:
    """A store with the same parents and no trained artifact."""
    import shutil

    shutil.copytree(store.bucket.root, tmp_path / "other")
    return Store(Bucket(str(tmp_path / "other")), tmp_path / "other-work")


def send_at_step(job, step: int, number: int) -> threading.Thread:
    """Sends a signal to the trainer once it has made so many steps."""
    metrics = job.folder / "metrics.jsonl"

    def send():
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= step:
                break
            time.sleep(0.01)
        os.kill(trainer(job), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def trainer(job) -> int:
    """The process that works on the job."""
    for process in Path("/proc").iterdir():
        try:
            line = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if b"ft_pipeline.finetune.main" in line and str(job.folder).encode() in line:
            return int(process.name)
    raise AssertionError("no trainer is running")


def attempts(job) -> int:
    return (job.folder / "attempts.jsonl").read_bytes().count(b"\n")


def test_kill_9_in_the_middle_then_the_same_command_gives_the_same_digest(road):
    job, worker, whole = road
    killer = send_at_step(job, 27, signal.SIGKILL)
    with pytest.raises(TrainingFailed, match="crashed with exit code -9"):
        worker.run(job, ignore)
    killer.join()
    assert worker.store.find(job.spec) is None
    said = []
    made = worker.run(job, said.append)
    assert made.ref == whole.ref
    assert made.file("losses.jsonl").read_bytes() == whole.file("losses.jsonl").read_bytes()
    assert attempts(job) == made.manifest.execution["attempts"] == 2
    resumed = next(m for m in said if m.text.startswith("resumed after step"))
    assert resumed.facts["step"] >= 20 and 0 <= made.manifest.execution["steps_replayed"] < 10


def test_sigterm_exits_75_loses_no_step_and_resumes_bit_for_bit(road):
    job, worker, whole = road
    stopper = send_at_step(job, 13, signal.SIGTERM)
    with pytest.raises(Interrupted, match="run the same command again"):
        worker.run(job, ignore)
    stopper.join()
    made = worker.run(job, ignore)
    assert made.ref == whole.ref and made.manifest.execution["steps_replayed"] == 0
    steps = [json.loads(line)["step"] for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_loss_that_is_not_finite_exits_42_and_publishes_nothing(home, store, tmp_path, monkeypatch):
    monkeypatch.setenv("FT_MLFLOW", "off")
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(60)), base)
    recipe = tiny.recipe(learning_rate=1e30)
    job = train_job(recipe, shards=shards, base=base, work=home.work, placement=Placement())
    with pytest.raises(TrainingFailed, match=r"failed for good: step \d+: loss"):
        LocalWorker(home, store).run(job, ignore)
    assert not list(store.all("checkpoints"))
