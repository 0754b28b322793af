"""The processes of a run: one, or several that share the micro-batches of a step and agree on everything else.

Three ways to share: replicas (each process holds every weight, gradients are summed), shards (FSDP2, sharding.py) and ZeRO (DeepSpeed,
zero.py). In each a process computes the micro-batches that `schedule.mine` deals to it, the loss is divided by the weight of the whole
step, and sums over processes differ from one process only in the order of additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune import sharding
from ft_pipeline.finetune.compiling import compile_layers
from ft_pipeline.finetune.recompute import recompute
from ft_pipeline.finetune.updates import Updates, updates_of
from ft_pipeline.finetune.zero import left
from ft_pipeline.settings import rank_here
from ft_pipeline.workers.child import dying_with_parent_at_once
from ft_pipeline.workers.job import Checkpointing, Offload, Placement, Sharding


@dataclass(kw_only=True)
class World:
    """This process among those of the run. Alone, every method gives back what it is given."""

    rank: int = 0
    size: int = 1
    sharding: Sharding = "none"
    offload: Offload = "none"
    checkpointing: Checkpointing = "none"
    compile: bool = False
    control: Any = None
    """Gloo group for votes and sums of plain numbers: never the one of the gradients."""
    updates: Any = None
    """What moves the weights, once the model is spread."""

    @property
    def leads(self) -> bool:
        """True for the one that writes files and tells what happens."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """FSDP2 splits the parameters."""
        return self.sharding == "fsdp" and self.size > 1

    def spread(self, trainee: Any) -> Updates:
        """Readies the loaded model for this world, and what will move its weights. Every process has loaded the same one."""
        layers = sharding.layers_of(trainee.model)
        if self.compile:
            compile_layers(layers, device=trainee.device)
        recompute(layers, self.checkpointing)
        if self.sharded:
            sharding.shard(trainee.model, device=trainee.device, size=self.size, dtype=trainee.section.dtype)
        self.updates = updates_of(trainee, self)
        return self.updates

    def agreed(self, *claims: bool) -> tuple[bool, ...]:
        """Each claim as all processes see it: True when one of them says so. Measured on gloo, 2 loaded cores: 0.3 ms."""
        if self.size == 1:
            return claims
        flags = torch.tensor([int(claim) for claim in claims], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(flag) for flag in flags.tolist())

    def summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum of each value over all processes, in float64. Every process names the same values."""
        if self.size == 1:
            return dict(values)
        names = sorted(values)
        sums = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(sums, group=self.control)
        return dict(zip(names, sums.tolist(), strict=True))

    def shares(self, items: Sequence[Any]) -> Iterator[tuple[Any, bool]]:
        """What this process computes of some items, each with whether it counts: the same number in every process.

        Where the items do not divide, the last ones of some processes are computed and not counted: a sharded model's forward
        pass is a collective, so no process may skip it.
        """
        for start in range(0, len(items), self.size):
            place = start + self.rank
            yield items[min(place, len(items) - 1)], place < len(items)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def leave(self) -> None:
        """Ends the group; the last thing that a process does with it."""
        if self.size > 1:
            left(self.updates)
            dist.destroy_process_group()


def join(placement: Placement) -> World:
    """The world of this process, from what its starter put into the environment. Raises RecipeError when that contradicts the placement.

    Returns when all processes have come. A run of one process needs no group.
    """
    here = rank_here()
    if here is None:
        return World(checkpointing=placement.checkpointing, compile=placement.compile)
    if here.size != placement.world:
        raise RecipeError(
            f"this is process {here.rank} of {here.size}, the placement says {placement.world}",
            cure="start as many processes as placement.processes times nodes",
        )
    if placement.device == "cuda":
        torch.cuda.set_device(here.local_rank)
    backend = "cpu:gloo,cuda:nccl" if placement.device == "cuda" else "gloo"
    with dying_with_parent_at_once():
        dist.init_process_group(backend, init_method=here.rendezvous, rank=here.rank, world_size=here.size)
    return World(
        rank=here.rank, size=here.size, sharding=placement.sharding, offload=placement.offload,
        checkpointing=placement.checkpointing, compile=placement.compile, control=dist.new_group(backend="gloo"),
    )  # fmt: skip
