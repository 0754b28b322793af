"""Watches the loss: what is not finite ends the run with a diagnosis, what jumps is told."""

from __future__ import annotations

import contextlib
import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ft_pipeline.errors import StorageError, TrainingFailed
from ft_pipeline.finetune.sharding import whole
from ft_pipeline.store.files import write_atomic

if TYPE_CHECKING:
    from ft_pipeline.finetune.loop import Run

DIAGNOSIS = "diagnosis.json"
MODULES_TOLD = 10
STEPS_TOLD = 20
WORTHLESS = "Weights after this step would be worthless; nothing was published, and a retry would end the same way."
LEAST_WINDOW, WINDOW_SHARE, MULTIPLIER, PATIENCE, CAP = 100, 1 / 20, 2.0, 4, 10.0
"""Of llm-foundry's kill_loss_spike_callback: a window of 1/20 of the run, a jump is twice its mean, the fifth in a row is a spike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Micro:
    """What one forward pass gave."""

    number: int
    """Of the global micro-batch."""
    loss: torch.Tensor
    """Summed, without gradient."""
    weight: float


@dataclass
class Spikes:
    """The losses of a run in order, those of earlier attempts too."""

    planned_steps: int
    seen: int = 0
    outliers: int = 0
    """In a row."""
    recent: deque[float] = field(default_factory=deque)

    @property
    def window(self) -> int:
        """Losses that a new one is compared with."""
        return max(LEAST_WINDOW, round(self.planned_steps * WINDOW_SHARE))

    def fault(self, loss: float) -> str | None:
        """What is wrong with the newest loss, in words; None for most."""
        found = self._fault(loss) if len(self.recent) == self.window else None
        self.recent.append(loss)
        self.seen += 1
        if len(self.recent) > self.window:
            self.recent.popleft()
        return found

    def _fault(self, loss: float) -> str | None:
        mean = math.fsum(self.recent) / self.window
        self.outliers = self.outliers + 1 if loss >= mean * MULTIPLIER else 0
        if self.outliers > PATIENCE:
            return f"loss spike: {loss:.3g} and {self.outliers - 1} before it are twice the mean {mean:.3g} of {self.window} steps"
        high = sum(1 for value in self.recent if value > CAP)
        if self.seen >= 2 * self.window and high >= self.window / 2:
            return f"persistently high loss: {high} of the last {self.window} steps are above {CAP:g}"
        return None


def refuse_not_finite(run: Run, entry: Mapping[str, Any], micros: Sequence[Micro]) -> None:
    """Raises TrainingFailed when loss or gradient norm is none, after writing the diagnosis. The gradients are still there."""
    if math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]):
        return
    facts = {
        **{name: _number(value) for name, value in entry.items()},
        "micro_batches": [_micro(run, micro) for micro in micros],
        "gradient_norms": gradient_norms(run.world.updates.gradients()),
    }
    path = _diagnosed(run, facts)
    raise TrainingFailed(
        f"step {entry['step']}: loss {entry['loss']}, gradient norm {entry['grad_norm']} at learning rate "
        f"{entry['learning_rate']:g}; the diagnosis is {path}",
        why=WORTHLESS,
        cure="a lower finetune.learning_rate or more warm-up; or look at the rows that the diagnosis names",
    )


def refuse_not_finite_validation(run: Run, step: int, loss: float) -> None:
    """Raises TrainingFailed when a validation loss is none."""
    if math.isfinite(loss):
        return
    path = _diagnosed(run, {"step": step, "validation_loss": _number(loss)})
    raise TrainingFailed(
        f"validation after step {step}: loss {loss}; the diagnosis is {path}",
        why=WORTHLESS,
        cure="a lower finetune.learning_rate or more warm-up",
    )


def refuse_spike(step: int, fault: str) -> None:
    """Raises TrainingFailed for a recipe with `on_loss_spike: stop`."""
    raise TrainingFailed(
        f"step {step}: {fault}",
        why="The recipe says on_loss_spike: stop; nothing was published.",
        cure="a lower finetune.learning_rate, or on_loss_spike: warn",
    )


def gradient_norms(gradients: Iterable[tuple[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """The ten modules of the largest gradients, those that are not finite first. `gradients`: with the names of their parameters."""
    squares: dict[str, torch.Tensor] = {}
    for name, gradient in gradients:
        module = name.rpartition(".")[0]
        squares[module] = squares.get(module, torch.zeros(())) + whole(gradient.detach().double().square().sum()).cpu()
    norms = {module: float(square.sqrt()) for module, square in squares.items()}
    first = sorted(norms, key=lambda module: (math.isfinite(norms[module]), -_finite(norms[module]), module))
    return [{"module": module, "norm": _number(norms[module])} for module in first[:MODULES_TOLD]]


def _micro(run: Run, micro: Micro) -> dict[str, Any]:
    rows = [row for i in run.schedule.windows_of(micro.number) for row in run.train[i].row_ids]
    return {"number": micro.number, "loss": _number(float(micro.loss) / micro.weight), "row_ids": rows}


def _diagnosed(run: Run, facts: Mapping[str, Any]) -> Path:
    """Writes diagnosis.json into the run folder; each process of a run writes its own."""
    with contextlib.suppress(StorageError):
        run.saver.settle()
    newest = max((folder.name for folder in run.checkpoints.folder.glob("step-*")), default=None)
    body = {
        **facts,
        "last_good_checkpoint": newest,
        "attempt": run.metrics.attempt,
        "losses_before": run.metrics.recent(STEPS_TOLD),
    }
    path = run.metrics.folder / (DIAGNOSIS if run.world.leads else f"diagnosis-{run.world.rank}.json")
    write_atomic(path, json.dumps(body, indent=1).encode())
    return path


def _number(value: Any) -> Any:
    """JSON has no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
