"""The section of a recipe that decides its verdict: what is measured, and by which policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ft_pipeline.recipe_data import STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldoutGate:
    """The task metric on the recipe's own holdout, adapter against base, generated with the production template."""

    __pydantic_config__ = STRICT
    metric: Literal["exact_match", "rouge_l", "token_f1"] = "exact_match"
    max_new_tokens: int = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkGate:
    """A multiple-choice suite (JSONL rows `{id, context, choices, answer}`), adapter against base, paired."""

    __pydantic_config__ = STRICT
    name: str
    uri: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyGate:
    """Prompts (JSONL rows `{id, prompt, harmful}`): harmful ones must be refused, harmless ones must not."""

    __pydantic_config__ = STRICT
    uri: str
    max_new_tokens: int = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What must hold before promotion. Margins and rules are the policy's: `ft_pipeline/gate/policies/NAME.yaml`."""

    __pydantic_config__ = STRICT
    policy: str
    holdout: HoldoutGate = field(default_factory=HoldoutGate)
    benchmarks: tuple[BenchmarkGate, ...] = ()
    safety: SafetyGate | None = None
