"""The verdict on the task's own holdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.metrics import Corpus, corpus_of
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.samples import Pair
from ft_pipeline.gate.verdicts.numbers import by_bounds, discordance, means, moved, number
from ft_pipeline.gate.wording import bound, count, percent, points


def holdout(
    pairs: Sequence[Pair],
    policy: Policy,
    *,
    metric: str,
    parameters: Mapping[str, Any] | None = None,
    skipped: int = 0,
) -> GateResult:
    """The task: adapter >= (1 + gain) * base, as a linear test of c = a - (1 + gain) * b, so that a base of zero is safe.

    Where (1 + gain) * base exceeds the best possible score the rule becomes: errors shrink by the same share.
    `low` and `high` are those of c, moved back to the axis of the difference, so that PASS is `low >= threshold`.
    A metric of a whole set (BLEU, chrF, macro-F1) is compared as that, with bounds from a paired bootstrap over the rows.
    """
    corpus = corpus_of(metric, parameters or {})
    arms = _corpus_scores(pairs, corpus) if corpus else means(pairs)
    rule = _Rule(gain=policy.holdout_gain, ceiling=(1 + policy.holdout_gain) * arms[0] > 1)
    (base, adapter), needed = arms, rule.needed(arms[0])
    interval = _interval(pairs, (corpus, rule), policy)
    facts: dict[str, Any] = {
        "metric": metric,
        "ceiling": rule.ceiling,
        "rows_without_reference": skipped,
        **discordance(pairs),
    }
    if corpus:
        by_row = means(pairs)
        facts |= {"row_base": st.rounded(by_row[0]), "row_adapter": st.rounded(by_row[1]), "bounds": "paired bootstrap"}
    result = GateResult(
        name="holdout", kind="holdout", verdict=Verdict.INCONCLUSIVE, base=st.rounded(base), adapter=st.rounded(adapter),
        difference=st.rounded(adapter - base), low=moved(interval.low, needed), high=moved(interval.high, needed),
        threshold=st.rounded(needed), rows=len(pairs), rule=_holdout_rule(policy, rule.ceiling, metric), facts=facts,
    )  # fmt: skip
    verdict = _holdout_verdict(result, policy)
    return replace(result, verdict=verdict, reason=_holdout_reason(replace(result, verdict=verdict), policy))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    """How much the adapter must gain over a base score."""

    gain: float
    ceiling: bool

    def needed(self, base: float) -> float:
        """The difference that is asked for."""
        return self.gain * (1 - base) if self.ceiling else self.gain * base

    def surplus(self, base: float, adapter: float) -> float:
        """How far the difference lies above it: linear in both."""
        return adapter - base - self.needed(base)


def _interval(pairs: Sequence[Pair], how: tuple[Corpus | None, _Rule], policy: Policy) -> st.Interval:
    """Of the surplus."""
    corpus, rule = how
    if corpus is None:
        return st.paired_t([rule.surplus(p.base_score, p.adapter_score) for p in pairs], policy.confidence)
    counts = corpus.counts(
        [p.reference for p in pairs] * 2, [p.base_output for p in pairs] + [p.adapter_output for p in pairs]
    )
    return st.paired_bootstrap(
        (counts[: len(pairs)], counts[len(pairs) :]), corpus.measure, rule.surplus, confidence=policy.confidence,
        seed="".join(p.id for p in pairs),
    )  # fmt: skip


def _corpus_scores(pairs: Sequence[Pair], corpus: Corpus) -> tuple[float, float]:
    references = [p.reference for p in pairs]
    return (
        corpus.score(references, [p.base_output for p in pairs]),
        corpus.score(references, [p.adapter_output for p in pairs]),
    )


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
