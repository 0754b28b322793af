"""Which checkpoints of a run stay on disk: a function of their steps and validation losses alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

LEAST_KEPT = 2
"""The newest may be damaged by the machine that made it: the one before must be there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """What is kept; the rest is deleted after each save."""

    last: int = LEAST_KEPT
    """The newest so many, two at least: what a run is resumed from."""
    best: bool = False
    """The one of the lowest validation loss."""
    every: int = 0
    """Those whose step is a multiple of it; 0 for none."""

    def doomed(self, steps: Collection[int], validations: Mapping[int, float]) -> list[int]:
        """Those of the steps that are deleted, in order."""
        newest = sorted(steps)[-max(LEAST_KEPT, self.last) :]
        return sorted(set(steps) - set(newest) - self.milestones(steps, validations))

    def milestones(self, steps: Collection[int], validations: Mapping[int, float]) -> set[int]:
        """Those that outlive the run: the best and every n-th."""
        found = {step for step in steps if self.is_milestone(step)}
        best = best_step({step: loss for step, loss in validations.items() if step in steps})
        return found | {best} if self.best and best is not None else found

    def is_milestone(self, step: int) -> bool:
        """True for a step that is kept because of its number."""
        return self.every > 0 and step > 0 and step % self.every == 0


def best_step(validations: Mapping[int, float]) -> int | None:
    """The trained step of the lowest validation loss, the earliest among equals; None when there is none. Step 0 is the base model."""
    finite = {step: loss for step, loss in validations.items() if step > 0 and math.isfinite(loss)}
    return min(finite, key=lambda step: (finite[step], step)) if finite else None


def stops_early(validations: Mapping[int, float], patience: int | None) -> bool:
    """True when the last `patience` evaluations brought nothing better than the one before them."""
    best = best_step(validations)
    return patience is not None and best is not None and sum(step > best for step in validations) >= patience
