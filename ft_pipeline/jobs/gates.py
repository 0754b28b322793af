"""The gate of a request: the specification's `eval_config`, or the platform's own suites where it says nothing."""

from __future__ import annotations

from typing import Any

from ft_pipeline.jobs import presets
from ft_pipeline.jobs.ask import Ask
from ft_pipeline.jobs.offer import Base, Offer

MMLU = "mmlu"
"""The official task behind `run_mmlu_regression`; an operator may name a suite of this name instead."""


def gate_of(ask: Ask, base: Base, offer: Offer) -> dict[str, Any]:
    """The section `gate` of a request without one of its own."""
    said = ask.examination
    made: dict[str, Any] = {
        "policy": offer.policies[0],
        "holdout": {
            "metric": "exact_match" if ask.method == "grpo" else "rouge_l",
            "max_new_tokens": presets.SHAPES[base.size].answer_tokens,
        },
        "benchmarks": _benchmarks(offer, mmlu=bool(said and said.run_mmlu_regression)),
    }
    if offer.safety and (said is None or said.safety_scan):
        made["safety"] = {"uri": offer.suites[offer.safety]}
    return made


def _benchmarks(offer: Offer, *, mmlu: bool) -> list[dict[str, str]]:
    if mmlu:
        return [{"name": MMLU, "uri": offer.suites[MMLU]} if MMLU in offer.suites else {"name": MMLU, "task": MMLU}]
    return [{"name": offer.benchmark, "uri": offer.suites[offer.benchmark]}] if offer.benchmark else []
