"""The worker of a house: where the placement says, and whether an interruption is a cancellation."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest

from ft_pipeline import resources
from ft_pipeline.errors import RecipeError, UserError
from ft_pipeline.finetune.launch import refuse_apart
from ft_pipeline.workers.placed import PlacedWorker, placement_of
from ft_pipeline_tests import tiny
from ft_pipeline_tests.workers.scenes import counting
from ft_pipeline_tests.workers.test_local import toy


def test_a_job_runs_where_its_placement_says(home, store, monkeypatch):
    from ft_pipeline_tests.workers.scenes import ROOT

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    worker = PlacedWorker(home, store)
    assert worker.run(toy(home, "publish"), lambda message: None).file("made.txt").read_text() == "made"
    with pytest.raises(UserError, match="a folder of this machine"):
        worker.run(counting(home), lambda message: None)


def test_without_a_cluster_it_is_said(home, store, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no cluster to talk to"):
        PlacedWorker(replace(home, store_uri="s3://bucket/x"), store).run(counting(home), lambda message: None)


def test_a_moved_orchestrator_is_no_cancelled_run(home):
    seen = []

    @dg.op(required_resource_keys={"house"})
    def look(context) -> None:
        asked = context.resources.house.worker.is_cancelled
        seen.append(asked())
        context.instance.report_run_canceling(context.run)
        seen.append(asked())

    @dg.job(resource_defs=resources.build())
    def job() -> None:
        look()

    with dg.DagsterInstance.ephemeral() as instance:
        job.execute_in_process(instance=instance)
    assert seen == [False, True]


def test_what_needs_one_disk_is_refused_on_several_machines():
    apart = placement_of({"kind": "kubernetes", "nodes": 2})
    refuse_apart(tiny.recipe(), apart)
    with pytest.raises(RecipeError, match=r"nodes 2 with finetune\.early_stop_evaluations"):
        refuse_apart(tiny.recipe(early_stop_evaluations=2, evaluate_every_steps=4), apart)
