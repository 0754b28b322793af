"""`python -m ft_pipeline.finetune.mirror {uri, experiment, tags}`: copies metric lines from standard input into one MLflow run.

A line is [values, step, milliseconds] or the final status. The end of input without a status means that the trainer was killed.
The last line of standard output is {run_id, experiment_id}, or {error}.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

FLUSH_METRICS, FLUSH_SECONDS = 1000, 10.0
"""1,000 metrics is the most that MLflow takes in one request."""
LOW_PRIORITY = 5
Entry = tuple[dict[str, float], int, int]


def main(target: dict[str, Any], lines: Iterator[str]) -> dict[str, str]:
    """The ids of the MLflow run that now holds every line, or what went wrong."""
    try:
        return _copied(target, lines)
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises is told to the trainer, which goes on
        return {"error": f"{type(error).__name__}: {error}"}


def _copied(target: dict[str, Any], lines: Iterator[str]) -> dict[str, str]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(target["uri"])
    found = client.get_experiment_by_name(target["experiment"])
    experiment = found.experiment_id if found else client.create_experiment(target["experiment"])
    tags = target["tags"]
    name = f"{tags['fingerprint'][:8]} attempt {tags['attempt']}"
    run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    status = "KILLED"
    for batch in _batches(lines):
        entries = [item for item in batch if not isinstance(item, str)]
        metrics = [Metric(key, value, at, step) for values, step, at in entries for key, value in values.items()]
        for start in range(0, len(metrics), FLUSH_METRICS):
            client.log_batch(run, metrics=metrics[start : start + FLUSH_METRICS])
        status = next((item for item in batch if isinstance(item, str)), status)
    client.set_terminated(run, status)
    return {"run_id": run, "experiment_id": experiment}


def _batches(lines: Iterator[str]) -> Iterator[list[Entry | str]]:
    """Lines in groups: at 1,000 metrics, after 10 s, or at the end."""
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_pump, args=(lines, waiting), daemon=True).start()
    batch: list[Entry | str] = []
    flush_at = time.monotonic() + FLUSH_SECONDS
    while True:
        try:
            line = waiting.get(timeout=max(0.0, flush_at - time.monotonic()))
        except queue.Empty:
            line = ""
        if line:
            batch.append(json.loads(line))
        full = sum(len(item[0]) for item in batch if not isinstance(item, str)) >= FLUSH_METRICS
        if line is None or not line or full:
            yield batch
            batch, flush_at = [], time.monotonic() + FLUSH_SECONDS
        if line is None:
            return


def _pump(lines: Iterator[str], waiting: queue.SimpleQueue[str | None]) -> None:
    for line in lines:
        waiting.put(line.strip() or None)
    waiting.put(None)


if __name__ == "__main__":
    os.nice(LOW_PRIORITY)
    answer = main(json.loads(sys.argv[1]), sys.stdin)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
