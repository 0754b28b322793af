"""What differs between what a replica holds and what it should hold, and the steps that repair it. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal

from ft_pipeline.serve.fleet.desired import Wanted
from ft_pipeline.serve.fleet.replica import Held, Seen

Do = Literal["load", "unload"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One call to one replica."""

    do: Do
    name: str
    why: str


def steps(wanted: Wanted, seen: Seen, folders: Container[str] | None = None) -> list[Step]:
    """Unloading first, so that a name that holds wrong weights is free before it is loaded again.

    What is right is left alone: an empty list is a replica that is as the catalog says. `folders`: digests of the adapters on its disk,
    None when nobody here sees the disk.
    """
    if seen.trouble or wanted.pool.kind == "standalone":
        return []
    wrong = [step for held in seen.held if not held.is_base for step in _unload(wanted, held, folders)]
    gone = {step.name for step in wrong}
    loads = [
        Step(do="load", name=name, why="missing" if seen.adapter(name) is None else "again")
        for name in sorted(wanted.adapters)
        if seen.adapter(name) is None or name in gone
    ]
    return [*wrong, *loads]


def faults(wanted: Wanted, seen: Seen) -> list[str]:
    """What is wrong with a replica that no step repairs."""
    if seen.trouble:
        return [f"does not answer: {seen.trouble}"]
    return list(_standalone_faults(wanted, seen) if wanted.pool.kind == "standalone" else _base_faults(wanted, seen))


def _unload(wanted: Wanted, held: Held, folders: Container[str] | None) -> Iterator[Step]:
    expected = wanted.permitted.get(held.name)
    if expected is None:
        yield Step(do="unload", name=held.name, why="in no stage that may answer on this base")
    elif held.digest != expected:
        found = held.digest[:12] if held.digest else held.root
        yield Step(do="unload", name=held.name, why=f"holds {found}, the catalog says {expected[:12]}")
    elif folders is not None and expected not in folders:
        # evicted, vLLM would read it again, and the whole server would exit: its resolver writes the folder anew
        yield Step(do="unload", name=held.name, why="its folder is gone")


def _base_faults(wanted: Wanted, seen: Seen) -> Iterator[str]:
    """By its name (vllm_server.py gives `base-<12 hex>`) and its folder. A resolver knows its base too, and refuses adapters of another."""
    ours = f"base-{wanted.pool.base[:12]}"
    for held in seen.held:
        named_otherwise = held.name.startswith("base-") and held.name != ours
        if held.is_base and (named_otherwise or held.is_other_than(wanted.model_ids)):
            yield f"holds {held.name} of {held.root}, the pool is {ours}"


def _standalone_faults(wanted: Wanted, seen: Seen) -> Iterator[str]:
    served = {held.name: held for held in seen.held if held.is_base}
    label = wanted.pool.serves or ""
    if label not in served:
        yield f"serves {', '.join(served) or 'nothing'}, not {label}"
    elif served[label].is_other_than(wanted.model_ids):
        yield f"{label} is {served[label].root} there, the inventory says {wanted.pool.base[:12]}"
