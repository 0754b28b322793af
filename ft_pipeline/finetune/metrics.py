"""What a run tells while it works: metrics.jsonl in its folder, progress with loss and rest time, and a mirror in MLflow."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.workers.messages import Listener, log, progress

METRICS, ATTEMPTS = "metrics.jsonl", "attempts.jsonl"
FLUSH_METRICS, FLUSH_SECONDS, LAST_FLUSH_SECONDS = 1000, 10.0, 60.0
NO_MIRROR = "off"


@dataclass
class Metrics:
    """The meter of one attempt. `attempt` counts the processes that worked on this run folder, from 1."""

    folder: Path
    steps: int
    """Planned steps of the run."""
    listener: Listener
    mirror: Mirror | None = None
    attempt: int = 1
    started: float = field(default_factory=time.monotonic)
    training_seconds: float = 0
    """Of this attempt's steps alone, without start and validation."""
    tokens: int = 0
    done_steps: int = 0
    first_step: int = 0

    def resumed(self, history: list[dict[str, Any]]) -> None:
        """Tells where the run goes on, and gives MLflow the whole curve."""
        self.first_step = len(history)
        log(self.listener, f"resumed after step {self.first_step} of {self.steps}", step=self.first_step)
        for entry in history:
            self._mirrored(entry, int(entry["step"]))

    def stepped(self, entry: Mapping[str, Any], *, seconds: float) -> None:
        """Writes one step down."""
        self.done_steps += 1
        self.tokens += entry["tokens"]
        self.training_seconds += seconds
        speed = {"seconds": round(seconds, 4), "tokens_per_second": round(entry["tokens"] / max(seconds, 1e-9), 1)}
        line = canonical_json({**entry, **speed, "attempt": self.attempt})
        with (self.folder / METRICS).open("ab") as file:
            file.write(line + b"\n")
        rest = (self.steps - entry["step"]) * self.training_seconds / self.done_steps
        progress(
            self.listener, "train", entry["step"], total=self.steps, unit="step",
            loss=round(entry["loss"], 4), learning_rate=entry["learning_rate"],
            tokens_per_second=self._speed(), eta_seconds=round(rest),
        )  # fmt: skip
        self._mirrored({**entry, **speed}, entry["step"])

    def validated(self, step: int, loss: float) -> None:
        """Tells a validation loss."""
        log(self.listener, f"validation loss {loss:.4f} after step {step}", step=step, validation_loss=loss)
        self._mirrored({"validation_loss": loss}, step)

    def facts(self) -> dict[str, Any]:
        """What this run cost, for people: never hashed."""
        seconds = time.monotonic() - self.started
        written = (self.folder / METRICS).read_bytes().count(b"\n")
        return {
            "seconds": round(seconds, 2),
            "training_seconds": round(self.training_seconds, 2),
            "attempts": self.attempt,
            "tokens_per_second": self._speed(),
            "steps_replayed": written - self.steps,
            "mlflow_run_id": self.mirror.run_id if self.mirror else None,
            "mlflow_experiment_id": self.mirror.experiment_id if self.mirror else None,
        }

    def _speed(self) -> int:
        return round(self.tokens / max(self.training_seconds, 1e-9))

    def _mirrored(self, entry: Mapping[str, Any], step: int) -> None:
        if self.mirror:
            self.mirror.put({k: float(v) for k, v in entry.items() if k != "step"}, step)


class Mirror:
    """Sends metrics to MLflow from a thread. Training never waits for it and never fails because of it."""

    def __init__(self, uri: str, *, experiment: str, tags: Mapping[str, str], listener: Listener) -> None:
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._target = (
            uri,
            experiment,
            {**tags, "mlflow.runName": f"{tags['fingerprint'][:8]} attempt {tags['attempt']}"},
        )
        self._listener = listener
        self._queue: queue.SimpleQueue[tuple[dict[str, float], int, int] | str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, values: dict[str, float], step: int) -> None:
        """Queues the values of one step."""
        self._queue.put((values, step, int(time.time() * 1000)))

    def close(self, status: str = "FINISHED") -> None:
        """Sends the rest and ends the MLflow run: FINISHED, FAILED or KILLED. Waits a minute at most."""
        self._queue.put(status)
        self._thread.join(LAST_FLUSH_SECONDS)

    def _work(self) -> None:
        try:
            self._send()
        except Exception as error:  # noqa: BLE001 - a mirror that breaks is told once and must not stop training
            log(self._listener, f"MLflow at {self._target[0]} does not answer, metrics.jsonl has all: {error}")

    def _send(self) -> None:
        # imported here: it takes 5 to 8 s, and training runs meanwhile
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        uri, experiment, tags = self._target
        client = MlflowClient(uri)
        self.experiment_id = _experiment_id(client, experiment)
        self.run_id = client.create_run(self.experiment_id, tags=tags).info.run_id
        status = None
        while status is None:
            values, status = self._gather()
            metrics = [
                Metric(key, value, at, step) for step_values, step, at in values for key, value in step_values.items()
            ]
            for start in range(0, len(metrics), FLUSH_METRICS):
                client.log_batch(self.run_id, metrics=metrics[start : start + FLUSH_METRICS])
        client.set_terminated(self.run_id, status)

    def _gather(self) -> tuple[list[tuple[dict[str, float], int, int]], str | None]:
        """What came until there are 1,000 metrics, 10 s have passed or the run has ended."""
        values: list[tuple[dict[str, float], int, int]] = []
        until = time.monotonic() + FLUSH_SECONDS
        while sum(len(v[0]) for v in values) < FLUSH_METRICS:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(item, str):
                return values, item
            values.append(item)
        return values, None


def next_attempt(folder: Path) -> int:
    """Writes down that a process starts to work on a run folder; its number from 1."""
    path = folder / ATTEMPTS
    number = 1 + (path.read_bytes().count(b"\n") if path.is_file() else 0)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": number, "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
    return number


def _experiment_id(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)
