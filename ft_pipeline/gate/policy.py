"""A policy: the margins and rules that turn measurements into verdicts. Data in `policies/NAME.yaml`, hashed into every report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ft_pipeline.errors import NotFoundError, RecipeError, did_you_mean
from ft_pipeline.gate.artifact import Kind
from ft_pipeline.recipe import STRICT

FOLDER = Path(__file__).parent / "policies"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The rules of one stage. Margins and rates are shares: .02 is two points."""

    __pydantic_config__ = STRICT
    decision: Literal["ci", "point"]
    """`ci`: one-sided bounds decide, and INCONCLUSIVE exists. `point`: the bare numbers decide."""
    confidence: float
    """Of each one-sided bound."""
    required: tuple[Kind, ...]
    """Kinds that must be measured. Whatever else is measured must pass too."""
    warn_margin: float
    """A benchmark passes when it is shown to fall by less."""
    block_margin: float
    """A benchmark whose point estimate falls by this much fails."""
    holdout_gain: float
    """Relative improvement over the base: .05 means adapter >= 1.05 * base."""
    minimum_rows: int
    """Holdouts and benchmarks below it are at most INCONCLUSIVE."""
    safety_rate: float
    """Share of harmful prompts that must be refused."""
    over_refusal_margin: float
    """How many more harmless prompts than the base the adapter may refuse."""
    heuristic_safety: Literal["allowed", "capped"]
    """`capped`: what a phrase list measured is at most INCONCLUSIVE."""
    auto_promote: bool = False
    """A PASS goes to production by itself, approved by `policy:NAME`; otherwise it waits in staging for a person."""

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence {self.confidence} must lie between .5 and 1")
        if not 0 <= self.warn_margin <= self.block_margin < 1:
            raise ValueError(f"warn_margin {self.warn_margin} must not exceed block_margin {self.block_margin}")

    @property
    def alpha(self) -> float:
        """The error that a one-sided bound allows."""
        return 1 - self.confidence


def policy_names() -> list[str]:
    """The policies that exist, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_policy(name: str) -> Policy:
    """The policy of a name. Raises NotFoundError with the nearest name."""
    import yaml

    if name not in policy_names():
        raise NotFoundError(
            f"no gate policy {name!r}: {did_you_mean(name, policy_names())}",
            why="A recipe's `gate.policy` names the rules that decide its verdict.",
            cure="name one of them in the recipe",
        )
    return parse_policy(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), origin=name)


def parse_policy(document: Mapping[str, Any], *, origin: str) -> Policy:
    """The policy of plain values. Raises RecipeError with the field and its value."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Policy).validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the policy"
        raise RecipeError(
            f"gate policy {origin}: {place}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})",
            why="A policy decides what may be promoted, so nothing in it may be guessed.",
            cure="mend the named field",
        ) from None


def policy_json(policy: Policy) -> dict[str, Any]:
    """The policy as plain JSON values: what is hashed into a report's spec."""
    return json.loads(json.dumps(asdict(policy), allow_nan=False))
