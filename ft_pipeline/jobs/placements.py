"""Where a tenant's job runs: the platform's placement with what a request may change of it. None of it changes a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ft_pipeline.errors import RecipeError, did_you_mean
from ft_pipeline.jobs.offer import Most
from ft_pipeline.settings import Settings
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.placed import placement_of, read_placement

FREE = (
    "gpu", "spot", "on_demand_after_minutes", "nodes", "processes", "sharding", "checkpointing", "offload", "checkpoint_steps",
    "checkpoint_minutes", "keep_best", "keep_every",
)  # fmt: skip
"""Worker, device, threads and grace are the operator's."""


def placement_for(settings: Settings, said: Mapping[str, Any], most: Most) -> Placement:
    """The placement of one job. Raises RecipeError for a field that is not free, a wrong value or one beyond the offer."""
    if unknown := next((name for name in said if name not in FREE), None):
        raise RecipeError(
            f"platform.placement.{unknown} is not yours to choose: {did_you_mean(unknown, FREE)}",
            why="The rest of a placement is the operator's.",
            cure=f"one of {', '.join(FREE)}",
        )
    usual = house_placement(settings)
    values = {**asdict(usual), **said, **({"device": "cuda"} if said.get("gpu") else {})}
    made = placement_of(values)
    for name in ("nodes", "processes"):
        if getattr(made, name) > max(getattr(most, name), getattr(usual, name)):
            raise RecipeError(
                f"platform.placement.{name} is {getattr(made, name)}, the platform gives {getattr(most, name)}"
            )
    return made


def house_placement(settings: Settings) -> Placement:
    """As the settings say, or the file that they name."""
    said: dict[str, Any] = {
        "threads": settings.threads,
        "processes": settings.processes,
        "sharding": settings.sharding,
    }
    return Placement(**said) if settings.placement is None else read_placement(settings.placement, **said)
