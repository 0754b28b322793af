"""What a run tells while it works: metrics.jsonl in its folder, progress with loss and rest time, and a mirror in MLflow."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
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
CLOSE_SECONDS = 60.0


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
    """Sends metrics to MLflow from a process of low priority. Training never waits for it and never fails because of it.

    A process, not a thread: importing MLflow takes 5 to 8 s of Python, which a thread would take from the training loop.
    """

    def __init__(self, uri: str, *, experiment: str, tags: Mapping[str, str], listener: Listener) -> None:
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._listener = listener
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        target = json.dumps({"uri": uri, "experiment": experiment, "tags": dict(tags)})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ft_pipeline.finetune.mirror", target],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._writer = threading.Thread(target=self._write, name="mirror", daemon=True)
        self._writer.start()

    def put(self, values: dict[str, float], step: int) -> None:
        """Queues the values of one step."""
        self._lines.put(json.dumps([values, step, int(time.time() * 1000)]))

    def close(self, status: str = "FINISHED") -> None:
        """Sends the rest and ends the MLflow run: FINISHED, FAILED or KILLED. Waits a minute at most."""
        if self._process.stdout is None or self._process.stdout.closed:
            return
        self._lines.put(json.dumps(status))
        self._lines.put(None)
        try:
            self._process.wait(CLOSE_SECONDS)
            self._read(self._process.stdout.read())
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            log(self._listener, "MLflow did not answer in time; metrics.jsonl has all that it lacks")
        self._process.stdout.close()

    def _read(self, answer: str) -> None:
        """Two ids, or in words what is wrong with MLflow: told once, it must not stop training."""
        said = json.loads(answer.strip().splitlines()[-1]) if answer.strip() else {"error": "no answer"}
        self.run_id, self.experiment_id = said.get("run_id"), said.get("experiment_id")
        if "error" in said:
            log(self._listener, f"MLflow is not mirrored, metrics.jsonl has all: {said['error']}")

    def _write(self) -> None:
        pipe = self._process.stdin
        while pipe and (line := self._lines.get()) is not None:
            try:
                pipe.write(line + "\n")
                pipe.flush()
            except BrokenPipeError:
                break
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def next_attempt(folder: Path) -> int:
    """Writes down that a process starts to work on a run folder; its number from 1."""
    path = folder / ATTEMPTS
    number = 1 + (path.read_bytes().count(b"\n") if path.is_file() else 0)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": number, "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
    return number
