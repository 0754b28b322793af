"""The loss curve of a run for a metadata page, and where MLflow shows it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

LOCAL_MLFLOW = "http://localhost:5000"
"""Where `make dev` serves the UI of a local tracking database."""


def loss_curve(losses: Sequence[Mapping[str, Any]]) -> str:
    """Markdown image: training loss by step, validation loss where it was measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [e["step"] for e in losses], [e["loss"] for e in losses], color="#3b6ea5", linewidth=1.2, label="training"
    )
    measured = [e for e in losses if "validation_loss" in e]
    if measured:
        places, values = [e["step"] for e in measured], [e["validation_loss"] for e in measured]
        axes.plot(places, values, color="#c0392b", marker="o", markersize=3, linewidth=1, label="validation")
        axes.legend(frameon=False)
    axes.set(title="Loss per trained token", xlabel="optimizer step", ylabel="nats")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"![loss curve](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def mlflow_page(uri: str, execution: Mapping[str, Any]) -> str | None:
    """Address of the MLflow run of an artifact, None when it was not mirrored."""
    run, experiment = execution.get("mlflow_run_id"), execution.get("mlflow_experiment_id")
    if not run:
        return None
    server = uri.rstrip("/") if uri.startswith("http") else LOCAL_MLFLOW
    return f"{server}/#/experiments/{experiment}/runs/{run}"
