"""What a run tells while it works: metrics.jsonl in its folder, progress with loss and rest time, and a mirror in MLflow."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ft_pipeline.finetune.guards import Drift
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.workers.messages import Listener, log, progress, tell_state

METRICS, ATTEMPTS, SAVES = "metrics.jsonl", "attempts.jsonl", "saves.jsonl"
CLOSE_SECONDS = 60.0
MOST_NATS = 700.0
"""exp of it is the largest power that fits into a float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What one checkpoint cost."""

    step: int
    stall_seconds: float
    """In which the training thread did nothing else."""
    write_seconds: float
    """Of the thread that hashed and wrote, mostly beside training."""
    size: int
    """Bytes."""


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
    trained_tokens: int = 0
    """Of all attempts."""
    done_steps: int = 0
    first_step: int = 0
    last_step: int = 0
    saves: list[Saved] = field(default_factory=list)
    watch: Drift | None = None
    """Of a policy: what its guards see goes into the lines."""

    @cached_property
    def _file(self) -> int:
        """Descriptor of metrics.jsonl, opened once: on a network disk opening and closing takes a round trip each.

        Nothing is buffered: a line is the kernel's before the next step begins, so that no kill loses one.
        """
        descriptor = os.open(self.folder / METRICS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def resumed(self, history: list[dict[str, Any]]) -> None:
        """Tells where the run goes on, and gives MLflow the whole curve."""
        self.first_step = self.last_step = len(history)
        self.trained_tokens = sum(entry["trained_tokens"] for entry in history)
        log(self.listener, f"resumed after step {self.first_step} of {self.steps}", step=self.first_step)
        for entry in history:
            self._mirrored(entry, int(entry["step"]))
        if self.watch:
            self.watch.resumed(history)

    def stepped(self, entry: Mapping[str, Any], *, seconds: float, **facts: float) -> None:
        """Writes one step down. `facts`: of this attempt's machine, such as mfu: never part of the trajectory."""
        self.done_steps += 1
        self.last_step = entry["step"]
        self.tokens += entry["tokens"]
        self.trained_tokens += entry["trained_tokens"]
        self.training_seconds += seconds
        speed = {"seconds": round(seconds, 4), "tokens_per_second": round(entry["tokens"] / max(seconds, 1e-9), 1)}
        speed |= facts
        speed |= self.watch.stepped(entry) if self.watch else {}
        os.write(self._file, canonical_json({**entry, **speed, "attempt": self.attempt}) + b"\n")
        rest = (self.steps - entry["step"]) * self.training_seconds / self.done_steps
        progress(
            self.listener, "train", entry["step"], total=self.steps, unit="step",
            loss=round(entry["loss"], 4), learning_rate=entry["learning_rate"],
            tokens_per_second=self._speed(), eta_seconds=round(rest), grad_norm=round(entry["grad_norm"], 4),
            trained_tokens=self.trained_tokens,
        )  # fmt: skip
        self._mirrored({**entry, **speed}, entry["step"])

    def validated(self, step: int, loss: float, *, per_token: bool = False) -> None:
        """Tells a validation loss; as perplexity too when it is a mean over tokens."""
        told = {"validation_loss": loss, **({"validation_perplexity": perplexity(loss)} if per_token else {})}
        also = f", perplexity {told['validation_perplexity']:.2f}" if per_token else ""
        log(self.listener, f"validation loss {loss:.4f}{also} after step {step}", step=step, **told)
        self._mirrored(told, step)

    def saved(self, saved: Saved) -> None:
        """Writes down what a checkpoint cost."""
        self.saves.append(saved)
        told = {
            "checkpoint_stall_seconds": round(saved.stall_seconds, 6),
            "checkpoint_write_seconds": round(saved.write_seconds, 6),
            "checkpoint_bytes": saved.size,
        }
        with (self.folder / SAVES).open("ab") as file:
            file.write(canonical_json({"step": saved.step, **told, "attempt": self.attempt}) + b"\n")
        tell_state(self.listener, "checkpointed", step=saved.step, bytes=saved.size)
        self._mirrored(told, saved.step)

    def recent(self, steps: int) -> list[dict[str, Any]]:
        """The last lines of metrics.jsonl."""
        path = self.folder / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines[-steps:]]

    def facts(self) -> dict[str, Any]:
        """What this run cost, for people: never hashed."""
        seconds = time.monotonic() - self.started
        written = (self.folder / METRICS).read_bytes().count(b"\n")
        stall = sum(saved.stall_seconds for saved in self.saves)
        return {
            "seconds": round(seconds, 2),
            "training_seconds": round(self.training_seconds, 2),
            "attempts": self.attempt,
            "tokens_per_second": self._speed(),
            "steps_replayed": written - self.last_step,
            "checkpoints": len(self.saves),
            "checkpoint_stall_seconds": round(stall, 4),
            "checkpoint_stall_share": round(stall / max(stall + self.training_seconds, 1e-9), 5),
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


def perplexity(loss: float) -> float:
    """Of a mean loss in nats per token; infinite where it does not fit into a float."""
    return math.exp(loss) if loss < MOST_NATS else math.inf


def next_attempt(folder: Path) -> int:
    """Writes down that a process starts to work on a run folder; its number from 1."""
    path = folder / ATTEMPTS
    number = 1 + (path.read_bytes().count(b"\n") if path.is_file() else 0)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": number, "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
    return number
