"""The verdict on the task's own holdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.samples import Pair
from ft_pipeline.gate.verdicts.numbers import by_bounds, discordance, means, moved, number
from ft_pipeline.gate.wording import bound, count, percent, points


def holdout(pairs: Sequence[Pair], policy: Policy, *, metric: str, skipped: int = 0) -> GateResult:
    """The task: adapter >= (1 + gain) * base, as a linear test of c = a - (1 + gain) * b, so that a base of zero is safe.

    Where (1 + gain) * base exceeds the best possible score the rule becomes: errors shrink by the same share.
    `low` and `high` are those of c, moved back to the axis of the difference, so that PASS is `low >= threshold`.
    """
    base, adapter = means(pairs)
    gain, ceiling = policy.holdout_gain, (1 + policy.holdout_gain) * base > 1
    needed = gain * (1 - base) if ceiling else gain * base
    terms = [p.adapter_score - p.base_score - gain * ((1 - p.base_score) if ceiling else p.base_score) for p in pairs]
    interval = st.paired_t(terms, policy.confidence)
    result = GateResult(
        name="holdout", kind="holdout", verdict=Verdict.INCONCLUSIVE, base=st.rounded(base), adapter=st.rounded(adapter),
        difference=st.rounded(adapter - base), low=moved(interval.low, needed), high=moved(interval.high, needed),
        threshold=st.rounded(needed), rows=len(pairs), rule=_holdout_rule(policy, ceiling, metric),
        facts={"metric": metric, "ceiling": ceiling, "rows_without_reference": skipped, **discordance(pairs)},
    )  # fmt: skip
    verdict = _holdout_verdict(result, policy)
    return replace(result, verdict=verdict, reason=_holdout_reason(replace(result, verdict=verdict), policy))


def _holdout_verdict(result: GateResult, policy: Policy) -> Verdict:
    difference, needed = number(result.difference), number(result.threshold)
    if result.base == 1.0:
        return Verdict.INCONCLUSIVE if result.adapter == 1.0 else Verdict.FAIL
    if policy.decision == "point":
        return Verdict.PASS if difference >= needed and difference > 0 else Verdict.FAIL
    if result.high == needed == 0 and difference <= 0:
        # neither arm ever scored: the bounds have no width, and "5% more than nothing" would hold
        return Verdict.FAIL
    verdict = by_bounds(number(result.low) >= needed and difference > 0, number(result.high) < needed)
    return Verdict.INCONCLUSIVE if verdict is Verdict.PASS and result.rows < policy.minimum_rows else verdict


def _holdout_rule(policy: Policy, ceiling: bool, metric: str) -> str:
    if ceiling:
        return f"{metric}: at least {percent(policy.holdout_gain)} fewer errors than the base (it is too good for a relative gain)"
    return f"{metric}: at least {percent(policy.holdout_gain)} better than the base, relatively"


def _holdout_reason(result: GateResult, policy: Policy) -> str:
    base, adapter = number(result.base), number(result.adapter)
    moved = f"{result.facts['metric']} on {count(result.rows, 'holdout row')} went from {percent(base)} to {percent(adapter)}"
    if base == adapter == 1.0:
        return f"the base already answers every holdout row: this holdout cannot show a gain. {moved}"
    if base == adapter == 0.0:
        return f"neither the base nor the adapter ever scored on {count(result.rows, 'holdout row')}: no gain is shown"
    side, value = ("at most", result.high) if result.verdict is Verdict.FAIL else ("at least", result.low)
    sure = f"{bound(policy)}: a gain of {side} {points(value)}" if value is not None else "one row has no bounds"
    said = f"{moved} ({sure}); the policy asks for {points(number(result.threshold))}"
    few = policy.decision == "ci" and result.rows < policy.minimum_rows
    return said + (f"; {result.rows} rows are fewer than the {policy.minimum_rows} that a PASS needs" if few else "")
