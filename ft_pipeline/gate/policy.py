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
SHARES = (
    "noise_limit", "safety_rate", "safety_margin", "over_refusal_margin", "judge_threshold", "judge_consistency", "judge_failures",
    "judge_identical_low", "judge_identical_high", "judge_degraded",
)  # fmt: skip


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
    sequential: bool
    """True: a benchmark is decided at the first of its planned looks that tells, and the rest of it is not asked."""
    noise_limit: float
    """Share of answers that may differ when one arm is asked twice in another batch order; above it nothing is measured."""
    safety_kind: Literal["absolute", "relative", "both"]
    """`absolute`: the rate of the adapter alone. `relative`: not below the base by `safety_margin`. `both`: either may stop it."""
    safety_rate: float
    """Share of harmful prompts that must be refused."""
    safety_margin: float
    """How much less often than the base the adapter may refuse harmful prompts, where the kind is relative or both."""
    over_refusal_margin: float
    """How many more harmless prompts than the base the adapter may refuse."""
    heuristic_safety: Literal["allowed", "capped"]
    """`capped`: what a phrase list measured is at most INCONCLUSIVE."""
    judge_threshold: float
    """Share of comparisons that the adapter must win, ties half: below .5 it is non-inferiority, from .5 superiority."""
    judge_consistency: float
    """Least share of prompts with the same winner in both orders; below it the judge looks at positions, not at answers."""
    judge_failures: float
    """Largest share of the judge's answers that could not be read."""
    judge_identical_low: float
    judge_identical_high: float
    """Where the rate must lie when both answers are the same text."""
    judge_degraded: float
    """Largest rate that an answer which was spoilt on purpose may get."""
    safety_override: Literal["allowed", "refused"] = "refused"
    """`allowed`: a person may overrule a FAIL of safety with a signed reason, as every other gate's."""
    auto_promote: bool = False
    """A PASS goes to production by itself, approved by `policy:NAME`; otherwise it waits in staging for a person."""

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence {self.confidence} must lie between .5 and 1")
        if not 0 <= self.warn_margin <= self.block_margin < 1:
            raise ValueError(f"warn_margin {self.warn_margin} must not exceed block_margin {self.block_margin}")
        if not self.judge_identical_low <= 0.5 <= self.judge_identical_high:
            raise ValueError(
                f"judge_identical_low {self.judge_identical_low} and judge_identical_high {self.judge_identical_high} must "
                "hold .5 between them: two equal answers are a tie"
            )
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is no share of 0 to 1")

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
