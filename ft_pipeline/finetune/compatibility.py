"""The table of combinations: what is known to break is refused before anything is computed, what no test ran is warned about."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.requirements import EXAMPLES
from ft_pipeline.recipe import Finetune, Recipe
from ft_pipeline.workers.job import Placement

TABLE = Path(__file__).with_name("compatibility.yaml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One combination."""

    method: str
    weights: str
    sharding: str
    packing: str
    attention: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the table says about a cell."""

    state: Literal["tested", "untested", "refused"]
    test: str = ""
    """tested: file and name of the test that trains it."""
    why: str = ""
    """refused: what happens otherwise."""
    issue: str = ""
    cure: str = ""


def refuse_incompatible(recipe: Recipe, placement: Placement) -> Verdict:
    """The verdict on a run that may start. Raises RecipeError for one that the table or the number of processes forbids."""
    _refuse_undivided(recipe.finetune, placement.world)
    _refuse_idle_offload(placement)
    _refuse_uncompiled(placement)
    cell = cell_of(recipe.finetune, placement)
    found = verdict(cell)
    if found.state == "refused":
        raise RecipeError(f"{_named(cell)}: refused ({found.issue})", why=found.why, cure=found.cure)
    return found


def cell_of(section: Finetune, placement: Placement) -> Cell:
    """Where a run is in the table."""
    sharding = "ddp" if placement.sharding == "none" else placement.sharding
    return Cell(
        method=section.method,
        weights=_weights(section),
        sharding="alone" if placement.world == 1 else sharding,
        packing="rows" if section.method in EXAMPLES else "windows",
        attention=placement.device,
    )


def verdict(cell: Cell) -> Verdict:
    """The first rule that fits."""
    rules = table()
    for rule in rules["refused"]:
        if _fits(rule["when"], cell):
            return Verdict(state="refused", why=rule["why"], issue=rule["issue"], cure=rule["cure"])
    for rule in rules["tested"]:
        if _fits(rule["when"], cell):
            return Verdict(state="tested", test=rule["test"])
    return Verdict(state="untested")


@functools.cache
def table() -> dict[str, Any]:
    """The whole table: version, refused, tested."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def warning(section: Finetune, placement: Placement) -> str | None:
    """A sentence about a combination that no test trains; None for a tested one."""
    cell = cell_of(section, placement)
    if verdict(cell).state == "tested":
        return None
    return f"untested combination (compatibility table {table()['version']}): {_named(cell)}"


def _refuse_undivided(section: Finetune, processes: int) -> None:
    micros = section.windows_per_step // section.windows_per_micro
    if micros % processes == 0:
        return
    fitting = [n for n in range(1, micros + 1) if micros % n == 0]
    below = max(n for n in fitting if n <= processes)
    raise RecipeError(
        f"placement.processes {processes} does not divide the {micros} micro-batches of a step "
        f"(windows_per_step {section.windows_per_step} / windows_per_micro {section.windows_per_micro})",
        why="Some processes would compute more micro-batches than others, and all would wait for those.",
        cure=f"processes: {below}, which changes no weight (possible: {', '.join(map(str, fitting))})",
    )


def _refuse_idle_offload(placement: Placement) -> None:
    """Only ZeRO moves states to host memory, and only stage 3 weights: elsewhere the field would do nothing, unseen."""
    able = ("zero3",) if placement.offload == "parameters" else ("zero1", "zero2", "zero3")
    if placement.offload == "none" or (placement.world > 1 and placement.sharding in able):
        return
    raise RecipeError(
        f"placement.offload {placement.offload} with {placement.world} processes and sharding {placement.sharding}",
        why="Nothing would be moved to host memory: DeepSpeed does that, for several processes.",
        cure=f"processes: 2 or more and sharding: {able[-1]}; or offload: none, and checkpointing: offload for activations",
    )


def _refuse_uncompiled(placement: Placement) -> None:
    """What a compiler would see only in pieces."""
    if not placement.compile:
        return
    if placement.sharding == "zero3" and placement.world > 1:
        raise RecipeError(
            "placement.compile with sharding zero3",
            why="DeepSpeed gathers weights in a hook of every matrix, and each hook breaks the compiled graph: nothing is left to fuse.",
            cure="sharding: fsdp, which gathers a layer at a time; or compile: false",
        )
    if placement.checkpointing == "selective":
        raise RecipeError(
            "placement.compile with checkpointing selective",
            why="It chooses products of matrices one by one, and in compiled code there are none to choose from.",
            cure="checkpointing: full or none; or compile: false",
        )


def _named(cell: Cell) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(cell).items())


def _weights(section: Finetune) -> str:
    if section.lora is None:
        return "full"
    if section.lora.quantize != "none":
        return "qlora"
    return "dora" if section.lora.dora else "lora"


def _fits(when: Mapping[str, Any], cell: Cell) -> bool:
    return all(
        getattr(cell, name) in (wanted if isinstance(wanted, list) else [wanted]) for name, wanted in when.items()
    )
