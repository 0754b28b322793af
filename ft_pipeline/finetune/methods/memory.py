"""What a method needs for its next step besides weights and optimizer: nothing, but for one that keeps its rollouts for some steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.parallel import World


def memory_of(method: Any, step: int, world: World) -> dict[str, Any]:
    """For a checkpoint after so many steps: plain values and tensors on the CPU. Of all processes, each of which calls this."""
    if not hasattr(method, "memory"):
        return {}
    own = method.memory(step)
    if world.size == 1 or not own:  # empty in one process is empty in all: it depends on the step alone
        return own
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, own, group=world.control)
    return {name: [value for part in parts for value in part[name]] for name in own}


def recall(method: Any, trainee: Trainee, *, step: int, memory: Mapping[str, Any]) -> None:
    """Before the first step of an attempt, which follows so many finished ones. `memory`: of the checkpoint; empty where it has none, and where a run begins."""
    if hasattr(method, "recall"):
        method.recall(trainee, step=step, memory=memory)
