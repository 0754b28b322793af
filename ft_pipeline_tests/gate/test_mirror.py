"""A report's numbers stand in MLflow beside the training's loss; an MLflow that does not answer changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ft_pipeline.gate.mirror import metrics, mirror, tags, target_of, training_run, write
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline_tests.gate import reports

MADE = Ref(kind="eval_report", fingerprint="f" * 64, digest="d" * 64)
LATER = Ref(kind="eval_report", fingerprint="e" * 64, digest="c" * 64)


@pytest.fixture
def adapter_of(store):
    """An adapter whose training was mirrored into an MLflow run, or was not (None)."""

    def made(run: str | None) -> Ref:
        steps = Spec(kind="checkpoints", config={"run": run}, parents={}, code="t")
        with store.publish(steps) as draft:
            (draft.folder / "x").write_text("x")
            draft.execution.update({"mlflow_run_id": run} if run else {})
        spec = Spec(kind="adapter", config={}, parents={"checkpoints": draft.artifact.ref}, code="t")
        with store.publish(spec) as draft:
            (draft.folder / "x").write_text("x")
        return draft.artifact.ref

    return made


def test_every_measured_number_has_a_name_that_mlflow_takes() -> None:
    report, _ = reports.failed()
    found = metrics(report)
    assert found["gate/passed"] == 0.0 and found["gate/mmlu/rows"] == 500
    assert found["gate/mmlu/difference"] == report.gate("mmlu").difference
    assert {f"gate/holdout/{f}" for f in ("base", "adapter", "difference", "low", "high")} <= found.keys()
    assert tags(report)["ft.gate.verdict"] == "FAIL" and tags(report)["ft.gate.holdout"] == "PASS"
    strange = replace(report, gates=(replace(report.gate("mmlu"), name="a:b/c"),))
    assert "gate/a_b_c/base" in metrics(strange)


@pytest.mark.slow
def test_they_go_into_the_run_of_the_training_once_for_each_report(store, home, adapter_of) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(home.mlflow_uri)
    run = client.create_run(client.create_experiment("acme/router")).info.run_id
    client.log_metric(run, "loss", 0.5)
    client.set_terminated(run, "FINISHED")
    (report, _), (better, _) = reports.failed(), reports.passed()
    adapter, where = adapter_of(run), (store, home)
    told = mirror(report, adapter=adapter, model_line="acme/router", made=MADE, where=where)
    assert told.ok and told.text == run
    # what the child does, in this process: importing MLflow takes it 6 s
    for again, made in ((report, MADE), (better, LATER)):
        target = target_of(again, run=training_run(store, adapter), model_line="acme/router", of=(adapter, made))
        assert write(target | {"uri": home.mlflow_uri}) == run
    found = client.get_run(run)
    assert found.info.status == "FINISHED" and found.data.metrics["loss"] == 0.5
    history = client.get_metric_history(run, "gate/mmlu/difference")
    assert [(m.step, m.value) for m in history] == [
        (0, report.gate("mmlu").difference),
        (1, better.gate("mmlu").difference),
    ]
    assert found.data.tags["ft.gate.verdict"] == "PASS" and found.data.metrics["gate/passed"] == 1.0


@pytest.mark.slow
def test_without_a_training_run_they_have_their_own_and_an_mlflow_that_fails_is_told(store, home, adapter_of) -> None:
    from mlflow import MlflowClient

    report, _ = reports.passed()
    adapter = adapter_of(None)
    assert training_run(store, adapter) is None
    target = target_of(report, run="0" * 32, model_line="acme/own", of=(adapter, MADE)) | {"uri": home.mlflow_uri}
    own = write(target)
    assert write({**target, "run": None}) == own
    run = MlflowClient(home.mlflow_uri).get_run(own)
    assert run.data.tags["ft.gate.adapter"] == adapter.digest and run.data.tags["attempt"] == "1"
    assert run.data.metrics["gate/holdout/adapter"] == report.gate("holdout").adapter
    broken = mirror(
        report, adapter=adapter, model_line="x", made=MADE, where=(store, replace(home, mlflow_uri="nosuch://server"))
    )
    assert not broken.ok and broken.text.startswith("not mirrored: ") and "nosuch" in broken.text
    off = mirror(report, adapter=adapter, model_line="x", made=MADE, where=(store, replace(home, mlflow_uri="off")))
    assert off.ok and off.seconds == 0.0
