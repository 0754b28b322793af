"""A trainer that is killed or stopped in the middle ends, after the same command, in the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ft_pipeline.errors import Interrupted, TrainingFailed
from ft_pipeline.finetune.launch import train_job
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.files import Bucket
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.local import LocalWorker
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests import tiny

RECIPE = tiny.recipe(epochs=24)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Parents:
    """A store with the shards and the base of a run, and what the uninterrupted run gives."""

    root: Path
    base: Artifact
    shards: Artifact
    whole: Artifact


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("parents")
    store = Store(Bucket(str(tmp / "store")), tmp / "work")
    base = tiny.publish_base(store, tiny.base_folder(tmp / "base"))
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(60), validation=6), base)
    shutil.copytree(tmp / "store", tmp / "trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_MLFLOW", "off")
        trained = Store(Bucket(str(tmp / "trained")), tmp / "work")
        return Parents(tmp / "store", base, shards, tiny.train_here(trained, RECIPE, shards, base))


@pytest.fixture
def road(home, store, parents, monkeypatch):
    """A job of many small steps over a fresh store, the worker, and the uninterrupted run's artifact."""
    monkeypatch.setenv("FT_MLFLOW", "off")
    shutil.copytree(parents.root, store.bucket.root)
    place = Placement(checkpoint_steps=5)
    job = train_job(RECIPE, shards=parents.shards, base=parents.base, work=home.work, placement=place)
    return job, LocalWorker(home, store), parents.whole


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


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5])
def test_sigterm_before_the_first_step_exits_75_and_loses_nothing(road, seconds):
    """In the imports, while the model is loaded, in the checks: whatever comes after so many seconds."""
    job, worker, whole = road

    def stop() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (job.folder / "log.txt").exists():
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(trainer(job), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted):
        worker.run(job, ignore)
    thread.join()
    made = worker.run(job, ignore)
    assert made.ref == whole.ref and made.manifest.execution["steps_replayed"] == 0


def test_a_loss_that_is_not_finite_exits_42_and_publishes_nothing(road, parents, home):
    _, worker, _ = road
    recipe = tiny.recipe(learning_rate=1e30)
    job = train_job(recipe, shards=parents.shards, base=parents.base, work=home.work, placement=Placement())
    with pytest.raises(TrainingFailed, match=r"failed for good: step \d+: loss .* the diagnosis is .*diagnosis.json"):
        worker.run(job, ignore)
    assert json.loads((job.folder / "diagnosis.json").read_text())["micro_batches"][0]["row_ids"]
    assert not list(worker.store.all("checkpoints"))
