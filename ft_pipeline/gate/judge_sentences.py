"""What a judge's transcript showed besides the rate, in sentences: how it was asked, whether it can be believed, what it leans to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ft_pipeline.gate.artifact import GateResult
from ft_pipeline.gate.wording import count, percent

Facts = Mapping[str, Any]
Said = Callable[[Facts, GateResult], str]


def _asked(facts: Facts, _: GateResult) -> str:
    failed = facts["failures"]
    told = ", ".join(f"{number:,} {cause}" for cause, number in failed.items())
    missing = (
        f"; {facts['missing']:,} of {count(facts['prompts'], 'prompt')} could not be used"
        if facts.get("missing")
        else ""
    )
    return (
        f"{count(facts['calls'], 'call')}, {f'without a verdict: {told}' if failed else 'each with a verdict'}{missing}"
    )


def _controls(facts: Facts, _: GateResult) -> str:
    parts = []
    if facts.get("consistency") is not None:
        parts.append(f"the same winner in both orders for {percent(facts['consistency'])} of prompts")
    if facts.get("identical_first_wins") is not None:
        first = percent(facts["identical_first_wins"])
        parts.append(f"of two equal answers the first won {first} ({count(facts['identical_prompts'], 'prompt')})")
    if facts.get("spoilt_wins") is not None:
        parts.append(
            f"answers spoilt on purpose won {percent(facts['spoilt_wins'])} ({count(facts['spoilt_prompts'], 'prompt')})"
        )
    return f"Controls of the judge: {'; '.join(parts)}" if parts else ""


def _counted(facts: Facts, _: GateResult) -> str:
    same = f"; {facts['same_text']:,} were the same text and count as ties" if facts.get("same_text") else ""
    return f"Won {facts['wins']:,}, lost {facts['losses']:,}, tied {facts['ties']:,}{same}"


def _length(facts: Facts, _: GateResult) -> str:
    delta = facts.get("length_delta", 0.0)
    side = "longer" if delta > 0 else "shorter"
    longer = facts.get("longer_wins")
    leaned = f"; where one answer won, it was the longer one in {percent(longer)}" if longer is not None else ""
    return f"The adapter's answers are {abs(delta):,.0f} characters {side} on average; at equal length the rate would be {percent(facts['length_controlled_rate'])}{leaned}"


def _places(facts: Facts, _: GateResult) -> str:
    return (
        f"The answer that is shown first won {percent(facts['first_place_wins'])}: the adapter got {percent(facts['rate_base_first'])} behind "
        f"the base and {percent(facts['rate_adapter_first'])} before it"
    )


JUDGE_SAID: tuple[tuple[tuple[str, ...], Said], ...] = (
    (("judge",), lambda f, _: f"Judge: {f['judge']}"),
    (("calls", "failures", "missing", "prompts"), _asked),
    (("identical_prompts", "consistency", "identical_first_wins", "spoilt_wins", "spoilt_prompts"), _controls),
    (("wins", "losses", "ties", "same_text"), _counted),
    (("length_controlled_rate", "length_delta", "longer_wins"), _length),
    (("first_place_wins", "rate_base_first", "rate_adapter_first"), _places),
)
"""Facts that belong together -> their sentence."""
