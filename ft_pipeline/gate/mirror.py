"""`python -m ft_pipeline.gate.mirror {...}`: writes a report's numbers into MLflow, in a process of low priority.

They go into the MLflow run of the adapter's training, beside its loss; into a run of their own where that is not known. The report is
the truth: an MLflow that does not answer is told and changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import FtError
from ft_pipeline.gate.artifact import EvalReport
from ft_pipeline.settings import NO_MLFLOW, Settings, child_environment
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Ref

TIMEOUT_SECONDS = 60
LOW_PRIORITY = 5
FIELDS = ("base", "adapter", "difference", "low", "high")
PASSED = "gate/passed"
TAG_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirrored:
    """How it ended: the id of the MLflow run, or what went wrong."""

    ok: bool
    text: str
    seconds: float


def mirror(report: EvalReport, *, adapter: Ref, model_line: str, made: Ref, where: tuple[Store, Settings]) -> Mirrored:
    """Writes the numbers of a report `made` of an `adapter` into MLflow. Never raises for MLflow; waits a minute at most."""
    store, settings = where
    if settings.mlflow_uri == NO_MLFLOW:
        return Mirrored(ok=True, text=f"not mirrored: FT_MLFLOW is {NO_MLFLOW}", seconds=0.0)
    target = target_of(report, run=training_run(store, adapter), model_line=model_line, of=(adapter, made))
    target["uri"] = settings.mlflow_uri
    begun = time.monotonic()
    ok, text = _run_child(target, settings)
    return Mirrored(ok=ok, text=text, seconds=round(time.monotonic() - begun, 1))


def target_of(report: EvalReport, *, run: str | None, model_line: str, of: tuple[Ref, Ref]) -> dict[str, Any]:
    """What the child is given besides the address. run: of the training, if it is known; of: adapter and report."""
    adapter, made = of
    return {
        "experiment": model_line, "run": run, "metrics": metrics(report), "tags": tags(report) | {"ft.gate.report": made.digest},
        "adapter": adapter.digest, "fingerprint": made.fingerprint,
    }  # fmt: skip


def training_run(store: Store, adapter: Ref) -> str | None:
    """The MLflow run in which the adapter was trained, None for weights from outside or a training that was not mirrored."""
    try:
        checkpoints = store.recorded(adapter).parents.get("checkpoints")
        return store.recorded(checkpoints).execution.get("mlflow_run_id") if checkpoints else None
    except FtError:
        return None


def metrics(report: EvalReport) -> dict[str, float]:
    """`gate/holdout/difference` and its kin, and whether it passed."""
    found = {
        f"gate/{_name(g.name)}/{field}": float(value)
        for g in report.gates
        for field in FIELDS
        if (value := getattr(g, field)) is not None
    }
    rows = {f"gate/{_name(g.name)}/rows": float(g.rows) for g in report.gates if g.rows}
    return {PASSED: float(report.passed), **found, **rows}


def tags(report: EvalReport) -> dict[str, str]:
    """The verdicts, as MLflow's search finds them."""
    each = {f"ft.gate.{_name(g.name)}": str(g.verdict) for g in report.gates}
    whole = {"verdict": str(report.verdict), "policy": report.policy, "reason": report.reason[:TAG_CHARACTERS]}
    return each | {f"ft.gate.{name}": value for name, value in whole.items()}


def _name(gate: str) -> str:
    """MLflow refuses other characters."""
    return re.sub(r"[^\w .-]", "_", gate)


def _run_child(target: Mapping[str, Any], settings: Settings) -> tuple[bool, str]:
    try:
        child = subprocess.run(
            [sys.executable, "-m", "ft_pipeline.gate.mirror", json.dumps(target)],
            env=child_environment(settings), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"not mirrored: MLflow did not answer within {TIMEOUT_SECONDS} s"
    said = (child.stderr if child.returncode else child.stdout).strip()
    last = said.splitlines()[-1] if said else f"the mirror ended with {child.returncode}"
    return child.returncode == 0, last if child.returncode == 0 else f"not mirrored: {last}"


def write(target: Mapping[str, Any]) -> str:
    """Writes into the run, once for each report, and returns its id. A later report of the same adapter is a later step."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    client = MlflowClient(target["uri"])
    run = _run(client, target)
    if run.data.tags.get("ft.gate.report") != target["tags"]["ft.gate.report"]:
        now, step = int(time.time() * 1000), len(client.get_metric_history(run.info.run_id, PASSED))
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, now, step) for key, value in target["metrics"].items()],
            tags=[RunTag(key, value) for key, value in target["tags"].items()],
        )
    return run.info.run_id


def _run(client: Any, target: Mapping[str, Any]) -> Any:
    """The training's run; one of the gate's own, keyed by the adapter, where that is unknown or was deleted."""
    from mlflow.exceptions import MlflowException

    if target["run"]:
        try:
            return client.get_run(target["run"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    found = client.get_experiment_by_name(target["experiment"])
    experiment = found.experiment_id if found else client.create_experiment(target["experiment"])
    own = client.search_runs([experiment], f"tags.`ft.gate.adapter` = '{target['adapter']}'", max_results=1)
    if own:
        return own[0]
    keys = {"ft.gate.adapter": target["adapter"], "fingerprint": target["fingerprint"], "attempt": "1"}
    made = client.create_run(experiment, tags=keys, run_name=f"gate {target['adapter'][:8]} attempt 1")
    client.set_terminated(made.info.run_id, "FINISHED")
    return client.get_run(made.info.run_id)


if __name__ == "__main__":
    os.nice(LOW_PRIORITY)
    sys.stdout.write("\n" + write(json.loads(sys.argv[1])) + "\n")
