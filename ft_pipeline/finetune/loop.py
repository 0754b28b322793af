"""The one training loop: global micro-batches, noise seeded by their number, loss over the step's trained tokens, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ft_pipeline.errors import Interrupted, TrainingFailed
from ft_pipeline.finetune.checkpoint import Checkpoints, State
from ft_pipeline.finetune.methods.method import Method
from ft_pipeline.finetune.metrics import Metrics
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.parallel import World
from ft_pipeline.finetune.preemption import StopRequest
from ft_pipeline.finetune.schedule import Schedule, mine, noise_seed


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a run works with."""

    trainee: Trainee
    method: Method
    schedule: Schedule
    train: Sequence[Any]
    validation: Sequence[Any]
    checkpoints: Checkpoints
    metrics: Metrics
    stop: StopRequest
    world: World = field(default_factory=World)


def make_deterministic(threads: int) -> None:
    """The same sums in the same order on every run. The thread count belongs to it: a split sum rounds differently."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # NaN in every new tensor is a debugging aid of that mode; it costs 7% here
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def train(run: Run) -> State:
    """The state after the last step, resumed from the newest whole checkpoint.

    Raises Interrupted after a stop was asked for and saved, TrainingFailed when loss or gradient is not finite.
    """
    optimizer = _optimizer(run.trainee)
    state = _resumed(run, optimizer)
    while True:
        validated = _validated(run, state)
        if validated and state.step == run.schedule.steps:
            return state
        if run.stop.asked:
            _stop(run, state, optimizer)
        _step(run, state, optimizer)
        if run.checkpoints.due(state.step) and not run.stop.asked and state.step < run.schedule.steps:
            run.checkpoints.save(state, run.trainee.tensors(), optimizer.state_dict())


def mean_loss(run: Run, items: Sequence[Any]) -> float | None:
    """Mean loss by the method's weight (nats per trained token), without gradient; None when a stop was asked for on the way."""
    total, weight = 0.0, sum(run.method.weight(item) for item in items)
    size = run.schedule.section.windows_per_micro
    run.trainee.model.eval()
    for start in range(0, len(items), size):
        if run.stop.asked:
            break
        batch = run.method.batch(run.trainee, items[start : start + size])
        with torch.no_grad(), run.trainee.precision():
            total += float(run.method.loss(run.trainee, batch).total)
    run.trainee.model.train()
    return None if run.stop.asked else total / weight


def _optimizer(trainee: Trainee) -> torch.optim.AdamW:
    section = trainee.section
    matrices = [p for p in trainee.trained if p.ndim > 1]
    others = [p for p in trainee.trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=section.learning_rate, fused=True)


def _resumed(run: Run, optimizer: torch.optim.Optimizer) -> State:
    newest = run.checkpoints.newest_whole()
    if newest is None:
        return State()
    state, tensors, saved = run.checkpoints.load(newest)
    run.trainee.load(tensors)
    optimizer.load_state_dict(saved)
    run.metrics.resumed(state.losses)
    return state


def _validated(run: Run, state: State) -> bool:
    """Measures the validation loss where an epoch ends, once; False when a stop cut it short."""
    key = str(state.step)
    if not run.validation or key in state.validations or not run.schedule.ends_epoch(state.step):
        return True
    loss = mean_loss(run, run.validation)
    if loss is None:
        return False
    state.validations[key] = loss
    if state.losses:
        state.losses[-1]["validation_loss"] = loss
    run.metrics.validated(state.step, loss)
    return True


def _stop(run: Run, state: State, optimizer: torch.optim.Optimizer) -> None:
    """Saves what is not saved yet and leaves with exit 75."""
    if state.step > run.checkpoints.saved_step:
        run.checkpoints.save(state, run.trainee.tensors(), optimizer.state_dict())
    raise Interrupted(
        f"stopped after step {state.step} of {run.schedule.steps}",
        why="Its work is in a checkpoint.",
        cure="run the same command again: it resumes",
    )


def _step(run: Run, state: State, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step; the state moves on by one entry."""
    started = time.monotonic()
    rate = run.schedule.learning_rate(state.step)
    entry = {"step": state.step + 1, **_gradients(run, state.step), "learning_rate": rate}
    _refuse_not_finite(entry)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.losses.append(entry)
    run.metrics.stepped(entry, seconds=time.monotonic() - started)


def _gradients(run: Run, step: int) -> dict[str, Any]:
    """Forward and backward over the step's micro-batches, gradients clipped; what the step tells besides its rate."""
    schedule, method = run.schedule, run.method
    every = range(step * schedule.micros_per_step, (step + 1) * schedule.micros_per_step)
    weight = sum(method.weight(run.train[i]) for micro in every for i in schedule.windows_of(micro))
    sums: dict[str, torch.Tensor] = {"loss": torch.zeros((), device=run.trainee.device)}
    tokens = 0
    for micro in mine(step, schedule.micros_per_step, (run.world.rank, run.world.size)):
        torch.manual_seed(noise_seed(schedule.section.seed, micro))
        batch = method.batch(run.trainee, [run.train[i] for i in schedule.windows_of(micro)])
        with run.trainee.precision():
            found = method.loss(run.trainee, batch)
            part = found.total / weight
        part.backward()
        for name, value in {"loss": part, **{n: v / weight for n, v in found.facts.items()}}.items():
            sums[name] = sums.get(name, 0) + value.detach()
        tokens += batch.tokens
    norm = torch.nn.utils.clip_grad_norm_(run.trainee.trained, schedule.section.max_grad_norm)
    told = {name: float(value) for name, value in sums.items()}
    return {**told, "grad_norm": float(norm), "tokens": tokens, "trained_tokens": int(weight)}


def _refuse_not_finite(entry: dict[str, Any]) -> None:
    if math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]):
        return
    raise TrainingFailed(
        f"step {entry['step']}: loss {entry['loss']}, gradient norm {entry['grad_norm']} at learning rate {entry['learning_rate']:g}",
        why="Weights after this step would be worthless; nothing was published, and a retry would end the same way.",
        cure="a lower finetune.learning_rate or more warm-up; or look at the rows of this step in rows.parquet",
    )
