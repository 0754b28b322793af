"""The mirror in MLflow holds every step; an MLflow that does not answer is told once and stops nothing."""

from __future__ import annotations

import io
import json

import pytest

from ft_pipeline.finetune import mirror
from ft_pipeline.finetune.metrics import Metrics, Mirror, next_attempt

TAGS = {"fingerprint": "f" * 64, "recipe_sha256": "a" * 64, "attempt": "1"}


def entry(step: int) -> dict:
    return {
        "step": step,
        "loss": 1.0 / step,
        "grad_norm": 0.5,
        "learning_rate": 1e-3,
        "tokens": 100,
        "trained_tokens": 9,
    }


@pytest.mark.slow
def test_every_step_is_in_mlflow_under_the_model_line(tmp_path):
    from mlflow import MlflowClient

    uri, said = f"sqlite:///{tmp_path / 'mlflow.db'}", []
    copied = Mirror(uri, experiment="demo/docs-router", tags=TAGS, listener=said.append)
    metrics = Metrics(folder=tmp_path, steps=30, listener=said.append, mirror=copied)
    for step in range(1, 31):
        metrics.stepped(entry(step), seconds=0.01)
    metrics.validated(30, 0.25)
    copied.close()
    facts = metrics.facts()
    client = MlflowClient(uri)
    run = client.get_run(facts["mlflow_run_id"])
    assert client.get_experiment(facts["mlflow_experiment_id"]).name == "demo/docs-router"
    assert run.info.status == "FINISHED" and {k: run.data.tags[k] for k in TAGS} == TAGS
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, 31))
    assert run.data.metrics["validation_loss"] == 0.25


@pytest.mark.slow
def test_an_mlflow_that_does_not_answer_stops_nothing_and_is_told_once(tmp_path):
    said = []
    copied = Mirror("nosuch://server", experiment="x", tags=TAGS, listener=said.append)
    metrics = Metrics(folder=tmp_path, steps=3, listener=said.append, mirror=copied)
    for step in range(1, 4):
        metrics.stepped(entry(step), seconds=0.01)
    copied.close()
    copied.close()
    assert metrics.facts()["mlflow_run_id"] is None
    assert len([m for m in said if "MLflow is not mirrored" in m.text]) == 1


def test_lines_are_grouped_by_a_thousand_metrics_and_end_with_the_status():
    lines = [json.dumps([{"a": 1.0, "b": 2.0}, step, 0]) for step in range(1200)]
    batches = list(mirror._batches(io.StringIO("\n".join([*lines, json.dumps("FINISHED")]))))
    assert [len(b) for b in batches] == [500, 500, 201] and batches[-1][-1] == "FINISHED"


def test_a_trainer_that_was_killed_leaves_no_status():
    batches = list(mirror._batches(io.StringIO(json.dumps([{"a": 1.0}, 0, 0]) + "\n")))
    assert batches == [[[{"a": 1.0}, 0, 0]]]


def test_attempts_are_counted_and_replayed_steps_too(tmp_path):
    assert [next_attempt(tmp_path), next_attempt(tmp_path)] == [1, 2]
    metrics = Metrics(folder=tmp_path, steps=3, listener=lambda _m: None, attempt=2)
    for step in (1, 2, 2, 3):
        metrics.stepped(entry(step), seconds=0.01)
    facts = metrics.facts()
    assert (facts["attempts"], facts["steps_replayed"], facts["tokens_per_second"]) == (2, 1, 10000)


def test_progress_tells_loss_rate_speed_and_rest(tmp_path):
    said = []
    metrics = Metrics(folder=tmp_path, steps=4, listener=said.append)
    metrics.stepped(entry(1), seconds=0.5)
    assert (said[0].task, said[0].done, said[0].total) == ("train", 1, 4)
    assert said[0].facts == {
        "loss": 1.0, "learning_rate": 1e-3, "tokens_per_second": 200, "eta_seconds": 2, "grad_norm": 0.5, "trained_tokens": 9,
    }  # fmt: skip
