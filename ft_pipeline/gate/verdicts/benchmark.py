"""The verdicts on benchmarks: what the base could do before must not be lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.samples import Pair
from ft_pipeline.gate.verdicts.numbers import by_bounds, discordance, means, number, short
from ft_pipeline.gate.wording import bound, count, points

Evidence = tuple[str, Sequence[Pair]]
"""Name of a gate and its pairs."""


def benchmarks(evidence: Sequence[Evidence], policy: Policy) -> list[GateResult]:
    """One result per benchmark: each must be shown to fall by less than the margin; FAIL is Holm-corrected over all of them."""
    counted = [st.count_pairs([p.base_score for p in pairs], [p.adapter_score for p in pairs]) for _, pairs in evidence]
    adjusted = st.holm([st.p_value_below(c, policy.warn_margin) for c in counted])
    return [_benchmark(one, c, (p, policy)) for one, c, p in zip(evidence, counted, adjusted, strict=True)]


def _benchmark(evidence: Evidence, pairs: st.Pairs, rules: tuple[float, Policy]) -> GateResult:
    (name, rows), (p_value, policy) = evidence, rules
    base, adapter = means(rows)
    interval = st.tango(pairs, policy.confidence)
    result = GateResult(
        name=name, kind="benchmark", verdict=Verdict.INCONCLUSIVE, base=st.rounded(base), adapter=st.rounded(adapter),
        difference=st.rounded(pairs.difference), low=st.rounded(interval.low), high=st.rounded(interval.high),
        threshold=-policy.warn_margin, rows=pairs.rows,
        rule=f"falls by less than {points(policy.warn_margin)}; {points(policy.block_margin)} lower fails at once",
        facts={"mcnemar_p": short(st.mcnemar(pairs)), "holm_p": short(p_value), **discordance(rows)},
    )  # fmt: skip
    verdict = _benchmark_verdict(result, p_value, policy)
    return replace(result, verdict=verdict, reason=_benchmark_reason(replace(result, verdict=verdict), policy))


def _benchmark_verdict(result: GateResult, p_value: float, policy: Policy) -> Verdict:
    difference, enough = number(result.difference), result.rows >= policy.minimum_rows
    if policy.decision == "point":
        return by_bounds(difference >= -policy.warn_margin, difference <= -policy.block_margin)
    if p_value <= policy.alpha or (enough and difference <= -policy.block_margin):
        return Verdict.FAIL
    return Verdict.PASS if enough and number(result.low) > -policy.warn_margin else Verdict.INCONCLUSIVE


def _benchmark_reason(result: GateResult, policy: Policy) -> str:
    difference, low, high = number(result.difference), number(result.low), number(result.high)
    if difference < 0:
        sure = f"at least {points(-high)} lower" if high < 0 else f"at most {points(-low)} lower"
        said = f"{result.name} fell by {points(-difference)} ({bound(policy)}: {sure})"
    else:
        moved = f"rose by {points(difference)}" if difference else "did not move"
        said = f"{result.name} {moved} ({bound(policy)}: at most {points(-low)} lower)"
    said += f"; the policy allows less than {points(policy.warn_margin)}"
    if result.verdict is Verdict.INCONCLUSIVE and policy.decision == "ci":
        short = result.rows < policy.minimum_rows
        more = f"a PASS needs {policy.minimum_rows}" if short else "more questions would tell"
        said += f"; {count(result.rows, 'question')} cannot tell: {more}"
    return said
