"""The map: every door, the automation and the resources, merged into one Dagster code location."""

from __future__ import annotations

import dagster as dg

from ft_pipeline import automation, resources
from ft_pipeline.acquire import assets as acquire
from ft_pipeline.curate import assets as curate
from ft_pipeline.encode import assets as encode
from ft_pipeline.finetune import assets as finetune
from ft_pipeline.gate import assets as gate
from ft_pipeline.register import assets as register
from ft_pipeline.resources import House
from ft_pipeline.serve import assets as serve

DOORS = (acquire, curate, encode, finetune, gate, register, serve)


def build(house: House | None = None) -> dg.Definitions:
    """The definitions with a given house (CLI, tests), or with the one that the environment describes."""
    doors = [door.defs for door in DOORS]
    merged = dg.Definitions.merge(*doors, automation.defs(), dg.Definitions(resources=resources.build(house)))
    return automation.with_conditions(merged)


@dg.definitions
def defs() -> dg.Definitions:
    """What `workspace.yaml` loads."""
    return build()
