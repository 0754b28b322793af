"""Real trainings in pods of the fake cluster, torn apart and put together again: the bytes are those of a run that nothing disturbed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import Bucket
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.kubernetes.carried import carried_step
from ft_pipeline.workers.local import LocalWorker
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests import tiny
from ft_pipeline_tests.workers.scenes import ROOT, Scene, scene, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def trained(home, store, tmp_path, monkeypatch):
    """A training job for the cluster, and the digest that an undisturbed run of this machine gives it in another store."""
    monkeypatch.setenv("FT_MLFLOW", "off")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FT_THREADS", "1")
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(96)), base)
    recipe = tiny.recipe(epochs=12, windows_per_step=4, windows_per_micro=2)

    def make(nodes: int, **placement) -> tuple[Job, str]:
        job = tiny.train_job_here(
            store, recipe, {"shards": shards, "base": base}, threads=1, worker="kubernetes", nodes=nodes, **placement
        )
        elsewhere = Store(Bucket(str(tmp_path / "elsewhere")), tmp_path / "work")
        for parent in job.spec.parents.values():
            _copy(store, elsewhere, parent.path)
        here = replace(
            job,
            folder=tmp_path / "undisturbed",
            placement=replace(job.placement, worker="local", nodes=1, processes=nodes),
        )
        where = replace(home, store_uri=elsewhere.bucket.root, threads=1, mlflow_uri="off")
        return job, LocalWorker(where, elsewhere).run(here, ignore).ref.digest

    return make


def _copy(source: Store, target: Store, path: str) -> None:
    import shutil

    shutil.copytree(source.bucket.path(path), target.bucket.path(path))


def steps_made(stage: Scene, pod: dict) -> int:
    """Of the attempt in a pod, as its own metrics say."""
    path = Path(stage.cluster.folder, "pods", pod["metadata"]["name"], "cache", "run", "metrics.jsonl")
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_index_0_of_two_nodes_is_evicted_and_the_gang_goes_on_from_the_very_step(home, store, tmp_path, trained):
    job, undisturbed = trained(2, checkpoint_steps=1000)
    with scene(home, store, tmp_path) as stage:
        run = stage.start(job)
        pod = stage.running(job, 0)
        until(lambda: steps_made(stage, pod) >= 3, 150)
        stage.cluster.evict(pod["metadata"]["name"])
        run.join(200)
        assert run.error is None and run.made.ref.digest == undisturbed
        assert run.made.manifest.execution["attempts"] == 2 and run.made.manifest.execution["steps_replayed"] == 0
        assert stage.cluster.made["jobs"] == 1 and stage.cluster.made["pods"] == 4
        assert {a["outcome"] for a in stage.attempts(job)} == {"preempted"}
        stage.check_clean()


def test_a_node_that_loses_power_goes_on_from_the_newest_checkpoint_in_the_store(home, store, tmp_path, trained):
    job, undisturbed = trained(1, checkpoint_steps=5)
    with scene(home, store, tmp_path) as stage:
        run = stage.start(job)
        pod = stage.running(job)
        until(lambda: carried_step(store, job.spec.fingerprint) >= 5, 150)
        stage.cluster.power_off(pod["spec"]["nodeName"])
        sent = carried_step(store, job.spec.fingerprint)
        run.join(200)
        assert run.error is None and run.made.ref.digest == undisturbed
        (attempt,) = stage.attempts(job)
        # what no disk but the lost one has is made again: the steps since the newest checkpoint in the store
        assert attempt["resumes_from"] >= sent >= 5
        assert run.made.manifest.execution["attempts"] == 2
        stage.check_clean()
