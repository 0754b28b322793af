"""The processes of a run: one, or several that share the micro-batches of a step and agree on everything else."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True for the one that writes files and tells what happens."""
        return self.rank == 0

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in every process."""
        return values
