"""How many steps a run has, which windows each sees, and its learning rate: functions of the recipe and the number of windows alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ft_pipeline.recipe import Finetune


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The plan of a run over `windows` windows."""

    section: Finetune
    windows: int

    @property
    def micros_per_epoch(self) -> int:
        """Whole micro-batches in an epoch; windows % windows_per_micro are left out, other ones in each epoch."""
        return self.windows // self.section.windows_per_micro

    @property
    def micros_per_step(self) -> int:
        """Forward passes in one optimizer step over all ranks."""
        return self.section.windows_per_step // self.section.windows_per_micro

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.draws * self.updates

    @property
    def updates(self) -> int:
        """Optimizer steps on the same rows, one after the other: 1, and more where a policy keeps its rollouts."""
        return self.section.reinforce.updates_per_rollout if self.section.reinforce else 1

    @property
    def draws(self) -> int:
        """How often a step takes rows that the one before did not have."""
        return self.micros_per_epoch * self.section.epochs // self.micros_per_step

    @property
    def sampler_exhausted(self) -> bool:
        """True when what is left after the last step does not fill another one."""
        left = self.micros_per_epoch * self.section.epochs - self.draws * self.micros_per_step
        return self.steps > 0 and left < self.micros_per_step

    def ends_epoch(self, step: int) -> bool:
        """True before the first step, after the first step that reaches the end of an epoch, and after the last step."""
        if step in (0, self.steps):
            return True
        drawn = ((s // self.updates) * self.micros_per_step for s in (step - 1, step))
        before, after = (micros // self.micros_per_epoch for micros in drawn)
        return after > before

    def evaluates(self, step: int) -> bool:
        """True where the validation loss is measured: before, after, and every n steps or at each end of an epoch."""
        every = self.section.evaluate_every_steps
        return self.ends_epoch(step) if every is None else step % every == 0 or step == self.steps

    def epoch(self, step: int) -> float:
        """Epochs consumed after a step."""
        return step / self.updates * self.micros_per_step / self.micros_per_epoch

    def windows_of(self, micro: int) -> Any:
        """Indices of the windows of a global micro-batch."""
        return rows_of(self.drawn(micro), (self.windows, self.section.windows_per_micro), self.section.seed)

    def drawn(self, micro: int) -> int:
        """Number among the micro-batches with rows of their own: the same for all updates on them."""
        step, place = divmod(micro, self.micros_per_step)
        return step // self.updates * self.micros_per_step + place

    def learning_rate(self, step: int) -> float:
        """Rate of the step that follows `step` finished ones: linear warm-up, then cosine or linear to 0, or constant."""
        warm = math.ceil(self.section.warmup_share * self.steps)
        top = self.section.learning_rate
        if step < warm:
            return top * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        shapes = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
        return top * shapes[self.section.schedule]


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, rows: int) -> Any:
    """Permutation of an epoch. key=[seed, epoch]: with a counter, neighbouring epochs share one stream shifted by 4 words (measured)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def rows_of(micro: int, shape: tuple[int, int], seed: int) -> Any:
    """Row numbers of one global micro-batch of (rows, size): a function of its number, never of the world size."""
    rows, size = shape
    epoch, place = divmod(micro, rows // size)
    return order(seed, epoch, rows)[place * size : (place + 1) * size]


def mine(step: int, per_step: int, world: tuple[int, int] = (0, 1)) -> range:
    """The micro-batches of a step that a (rank, world size) computes."""
    rank, size = world
    return range(step * per_step + rank, (step + 1) * per_step, size)


def noise_seed(seed: int, micro: int) -> int:
    """Seed of the random numbers (dropout) of one forward pass, so that no generator state has to be stored."""
    return int(np.random.SeedSequence([seed, micro]).generate_state(1, np.uint64)[0] >> 1)
