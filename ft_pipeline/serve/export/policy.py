"""A fidelity policy: how far an export may be from what it was made from. Data in `policies/NAME.yaml`, hashed into every report."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import NotFoundError, RecipeError, did_you_mean
from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.recipe import STRICT

FOLDER = Path(__file__).parent / "policies"
STRICT_GATES = ("production", "regulated")
"""Gate policies whose lines are exported under `strict` unless a person says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """What was measured: over the tokens of the answers, each predicted from the same text before it."""

    __pydantic_config__ = STRICT
    rows: int
    tokens: int
    kl: float
    """Mean KL(reference || export) per token, nats."""
    top1: float
    """Share of tokens where both would say the same next one."""
    reference_perplexity: float
    perplexity: float
    skipped: int = 0
    """Rows that are longer than the model reads."""

    @property
    def perplexity_ratio(self) -> float:
        """Above 1: the export is more surprised by the right answers."""
        return self.perplexity / self.reference_perplexity


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityPolicy:
    """The limits. All three must hold."""

    __pydantic_config__ = STRICT
    kl: float
    """Largest mean KL per token, nats."""
    top1: float
    """Least share of equal next tokens."""
    perplexity_ratio: float
    """Largest perplexity of the export over that of the reference."""
    minimum_tokens: int
    """Below it nothing is PASS."""
    auto_promote: bool
    """False: a version that passed under it waits in staging for a person, whatever the gate policy says."""

    def __post_init__(self) -> None:
        if self.kl <= 0 or not 0 < self.top1 <= 1 or self.perplexity_ratio < 1 or self.minimum_tokens < 1:
            raise ValueError(
                f"kl {self.kl} must be positive, top1 {self.top1} a share, perplexity_ratio {self.perplexity_ratio} and "
                f"minimum_tokens {self.minimum_tokens} at least 1"
            )


def policy_names() -> list[str]:
    """The policies that exist."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def policy_for(gate_policy: str) -> str:
    """The habit for a line: strict where its gate is."""
    return "strict" if gate_policy in STRICT_GATES else "standard"


def read_policy(name: str) -> FidelityPolicy:
    """The policy of a name. Raises NotFoundError with the nearest name, RecipeError for a file that is none."""
    import yaml

    if name not in policy_names():
        raise NotFoundError(f"no fidelity policy {name!r}: {did_you_mean(name, policy_names())}")
    return parse_policy(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), origin=name)


def parse_policy(document: Any, *, origin: str) -> FidelityPolicy:
    """The policy of plain values. Raises RecipeError with the field and its value."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(FidelityPolicy).validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the policy"
        raise RecipeError(
            f"fidelity policy {origin}: {place}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})",
            why="It decides which exports may answer for a model that passed its gate.",
            cure="mend the named field",
        ) from None


def policy_json(policy: FidelityPolicy) -> dict[str, Any]:
    """The policy as plain values: what is hashed into a report's spec."""
    return asdict(policy)


def judged(found: Fidelity, policy: FidelityPolicy) -> list[GateResult]:
    """The three gates of an export: `kl`, `top1`, `perplexity`. Too few tokens: at most INCONCLUSIVE; not a number: ERROR."""
    ratio = found.perplexity_ratio
    return [
        _gate("kl", found.kl, found.kl <= policy.kl, about=(found, policy),
              said=f"mean KL to the unquantised model is {found.kl:.4g} nats a token; the policy allows {policy.kl:g}"),
        _gate("top1", found.top1, found.top1 >= policy.top1, about=(found, policy),
              said=f"both would say the same next token at {found.top1:.2%} of the places; the policy asks for {policy.top1:.0%}"),
        _gate("perplexity", ratio, ratio <= policy.perplexity_ratio, about=(found, policy),
              said=f"perplexity of the right answers went from {found.reference_perplexity:.4g} to {found.perplexity:.4g} "
              f"({ratio - 1:+.2%}); the policy allows {policy.perplexity_ratio - 1:+.0%}"),
    ]  # fmt: skip


def _gate(
    name: str, value: float, holds: bool, *, about: tuple[Fidelity, FidelityPolicy], said: str
) -> GateResult:  # fmt: skip
    found, policy = about
    few = found.tokens < policy.minimum_tokens
    verdict = Verdict.FAIL if not holds else Verdict.INCONCLUSIVE if few else Verdict.PASS
    if not math.isfinite(value):
        verdict, said = Verdict.ERROR, f"{name} is {value}: the export gives no numbers"
    elif few:
        said += f"; {found.tokens} tokens are fewer than the {policy.minimum_tokens} that a PASS needs"
    return GateResult(
        name=name, kind="fidelity", verdict=verdict, rows=found.rows, reason=said,
        adapter=round(value, 6) if name == "top1" and math.isfinite(value) else None,
        threshold=policy.top1 if name == "top1" else None,
        rule="the export against what it was made from, over the tokens of the answers", facts={},
    )  # fmt: skip
