"""The one training loop: global micro-batches, noise seeded by their number, loss over the step's trained tokens, exact resume."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from ft_pipeline.errors import Interrupted
from ft_pipeline.finetune.checkpoint import Checkpoints, State
from ft_pipeline.finetune.composing import Batches
from ft_pipeline.finetune.meter import Meter
from ft_pipeline.finetune.methods.memory import memory_of, recall
from ft_pipeline.finetune.methods.method import Method
from ft_pipeline.finetune.metrics import Metrics
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.parallel import World
from ft_pipeline.finetune.retention import best_step, stops_early
from ft_pipeline.finetune.saving import Saver
from ft_pipeline.finetune.schedule import Schedule, mine, noise_seed
from ft_pipeline.finetune.sharding import whole
from ft_pipeline.finetune.updates import Updates
from ft_pipeline.finetune.watch import Micro, Spikes, refuse_not_finite, refuse_not_finite_validation, refuse_spike
from ft_pipeline.workers.messages import log
from ft_pipeline.workers.preemption import StopRequest

MEMORY = "memory"
"""Beside the optimizer's state: what the method remembers."""


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
    save_in_background: bool = True

    @cached_property
    def saver(self) -> Saver:
        """Writes the checkpoints; of several processes, the leader's."""
        return Saver(self.checkpoints, self.metrics.saved, background=self.save_in_background)

    @cached_property
    def batches(self) -> Batches:
        """The micro-batches by number."""

        def read(micro: int) -> list[Any]:
            return [self.train[i] for i in self.schedule.windows_of(micro)]

        return Batches(partial(self.method.batch, self.trainee), read, keep=4 * self.schedule.micros_per_step)

    @cached_property
    def meter(self) -> Meter:
        """Waits and shares of the peak, by step."""
        return Meter(self.trainee, recomputed=float(self.world.checkpointing == "full"))

    @cached_property
    def spikes(self) -> Spikes:
        """Every loss of the run."""
        return Spikes(self.schedule.steps)


def make_deterministic(threads: int) -> None:
    """The same sums in the same order on every run. The thread count belongs to it: a split sum rounds differently."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # NaN in every new tensor is a debugging aid of that mode; it costs 7% here
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def train(run: Run) -> State:
    """The state after the last step, resumed from the newest whole checkpoint; the model has the weights that are published.

    Raises Interrupted after a stop was asked for and saved, TrainingFailed when loss or gradient is not finite, StorageError when a
    checkpoint cannot be written.
    """
    try:
        return _trained(run)
    finally:
        run.saver.close()


def _trained(run: Run) -> State:
    updates = run.world.spread(run.trainee)
    state = _resumed(run, updates)
    # a model of which every weight is trained is loaded in eval mode, and no validation precedes the first step of most resumes
    run.trainee.model.train()
    stopping, due = run.world.agreed(run.stop.asked, False)
    while True:
        run.saver.look(state.step)
        validated = _validated(run, state)
        if validated and _is_over(run, state):
            return _ended(run, state)
        if stopping or not validated:
            _stop(run, state, updates)
        if (
            run.checkpoints.keep_best
            and state.step > run.checkpoints.saved_step
            and best_step(state.measured) == state.step
        ):
            _save(run, state, updates)
        _step(run, state, updates)
        stopping, due = run.world.agreed(run.stop.asked, run.checkpoints.due(state.step))
        if due and not stopping and state.step < run.schedule.steps:
            _save(run, state, updates)


def mean_loss(run: Run, items: Sequence[Any]) -> float | None:
    """Mean loss by the method's weight (nats per trained token), without gradient; None when a stop was asked for on the way."""
    total, weight = 0.0, sum(run.method.weight(item) for item in items)
    size = run.schedule.section.windows_per_micro
    stopped = False
    run.trainee.model.eval()
    for start, counts in run.world.shares(range(0, len(items), size)):
        (stopped,) = run.world.agreed(run.stop.asked)
        if stopped:
            break
        batch = run.method.batch(run.trainee, items[start : start + size])
        with torch.no_grad(), run.trainee.precision():
            total += float(run.method.loss(run.trainee, batch).total) * counts
    run.trainee.model.train()
    return None if stopped else run.world.summed({"loss": total})["loss"] / weight


def _resumed(run: Run, updates: Updates) -> State:
    newest = run.checkpoints.newest_whole()
    if newest is None:
        recall(run.method, run.trainee, step=0, memory={})
        return State()
    state, tensors, saved = run.checkpoints.load(newest)
    run.trainee.load(tensors)
    recall(run.method, run.trainee, step=state.step, memory=saved.pop(MEMORY, {}))
    updates.load(saved)
    run.metrics.resumed(state.losses)
    for entry in state.losses:
        run.spikes.fault(entry["loss"])
    return state


def _is_over(run: Run, state: State) -> bool:
    """True after the last step, and when the recipe stops early."""
    return state.step == run.schedule.steps or stops_early(state.measured, run.schedule.section.early_stop_evaluations)


def _ended(run: Run, state: State) -> State:
    """Waits for the last checkpoint. With early stopping the best weights are put back: the last ones are those of its patience."""
    run.saver.settle()
    run.world.wait()
    best = best_step(state.measured)
    if run.schedule.section.early_stop_evaluations is not None and best is not None and best != state.step:
        run.trainee.load(run.checkpoints.tensors_of(best))
        log(
            run.metrics.listener,
            f"the weights of step {best} of {state.step} had the lowest validation loss",
            step=best,
        )
    return state


def _validated(run: Run, state: State) -> bool:
    """Measures the validation loss where the schedule says so, once; False when a stop cut it short."""
    key = str(state.step)
    if not run.validation or key in state.validations or not run.schedule.evaluates(state.step):
        return True
    loss = mean_loss(run, run.validation)
    if loss is None:
        return False
    refuse_not_finite_validation(run, state.step, loss)
    state.validations[key] = loss
    if state.losses:
        state.losses[-1]["validation_loss"] = loss
    run.metrics.validated(state.step, loss, per_token=run.schedule.section.method in ("sft", "cpt"))
    return True


def _stop(run: Run, state: State, updates: Updates) -> None:
    """Waits for the checkpoint that is being written, saves what is not saved yet and leaves with exit 75."""
    run.saver.settle()
    if state.step > run.checkpoints.saved_step:
        _save(run, state, updates)
        run.saver.settle()
    raise Interrupted(
        f"stopped after step {state.step} of {run.schedule.steps}",
        why="Its work is in a checkpoint.",
        cure="run the same command again: it resumes",
    )


def _save(run: Run, state: State, updates: Updates) -> None:
    """All processes gather, one writes."""
    tensors, saved = run.trainee.live_tensors(), updates.state(keep=run.world.leads)
    if memory := memory_of(run.method, state.step, run.world):
        saved[MEMORY] = memory
    if run.world.leads:
        run.saver.save(state, tensors, saved)
    else:
        run.checkpoints.begin(state.step)


def _step(run: Run, state: State, updates: Updates) -> None:
    """One optimizer step; the state moves on by one entry."""
    started = time.monotonic()
    rate = run.schedule.learning_rate(state.step)
    found, micros, norm = _gradients(run, state.step, updates)
    entry = {"step": state.step + 1, **found, "learning_rate": rate}
    refuse_not_finite(run, entry, micros)
    updates.step(norm, rate)
    state.step += 1
    state.losses.append(entry)
    seconds = time.monotonic() - started
    run.metrics.stepped(entry, seconds=seconds, **run.meter.facts(seconds))
    if fault := run.spikes.fault(entry["loss"]):
        log(run.metrics.listener, f"step {state.step}: {fault}", step=state.step, spike=True)
        if run.schedule.section.on_loss_spike == "stop":
            refuse_spike(state.step, fault)


def _gradients(run: Run, step: int, updates: Updates) -> tuple[dict[str, Any], list[Micro], torch.Tensor]:
    """Forward and backward over the step's micro-batches: what the step tells besides its rate, each micro-batch, the gradient's norm."""
    schedule, method = run.schedule, run.method
    every = range(step * schedule.micros_per_step, (step + 1) * schedule.micros_per_step)
    weights = {micro: sum(method.weight(item) for item in run.batches.items(micro)) for micro in every}
    weight, micros = sum(weights.values()), []
    sums: dict[str, torch.Tensor] = {"loss": torch.zeros((), device=run.trainee.device)}
    tokens, dealt = 0, mine(step, schedule.micros_per_step, (run.world.rank, run.world.size))
    for micro in dealt:
        torch.manual_seed(noise_seed(schedule.section.seed, micro))
        batch, waited = run.batches.take(micro)
        run.meter.saw(batch, waited)
        with run.trainee.precision():
            found = method.loss(run.trainee, batch)
            part = found.total / weight
        updates.backward(part, last=micro == dealt[-1])
        for name, value in {"loss": part, **{n: v / weight for n, v in found.facts.items()}}.items():
            sums[name] = sums.get(name, 0) + value.detach()
        micros.append(Micro(number=micro, loss=found.total.detach(), weight=weights[micro]))
        tokens += batch.tokens
    norm = updates.norm()
    told = run.world.summed({"tokens": tokens, **{name: float(value) for name, value in sums.items()}})
    told |= {"grad_norm": float(whole(norm)), "tokens": int(told["tokens"]), "trained_tokens": int(weight)}
    return told, micros, norm
