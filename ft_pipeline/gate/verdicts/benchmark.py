"""The verdicts on benchmarks: what the base could do before must not be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.samples import Pair
from ft_pipeline.gate.verdicts.numbers import by_bounds, difference_interval, discordance, means, number, scores, short
from ft_pipeline.gate.wording import bound, count, points

Evidence = tuple[str, Sequence[Pair]]
"""Name of a gate and its pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Suite:
    """What is known of a benchmark besides its pairs."""

    plan: st.Plan | None
    """The looks. Its pairs are then in the order in which they were asked, and may end at the look that decided."""
    clusters: Sequence[str] | None


def benchmarks(
    evidence: Sequence[Evidence],
    policy: Policy,
    *,
    sizes: Mapping[str, int] | None = None,
    clusters: Mapping[str, Sequence[str]] | None = None,
) -> list[GateResult]:
    """One result per benchmark: each must be shown to fall by less than the margin; FAIL is Holm-corrected over all of them.

    `sizes`: questions of the whole suites, by name, where looks may have ended them early. `clusters`: the passage or template that
    each pair shares with others, in the order of the pairs.
    """
    known = [
        _Suite(
            plan=looks_of(policy, sizes[name], num_suites=len(sizes)) if sizes and looks_apply(policy) else None,
            clusters=(clusters or {}).get(name),
        )
        for name, _ in evidence
    ]
    walked = [st.walk(*scores(pairs), s.plan) if s.plan else [] for (_, pairs), s in zip(evidence, known, strict=True)]
    p_values = [_p_value(pairs, (w, s), policy) for (_, pairs), w, s in zip(evidence, walked, known, strict=True)]
    return [
        _decided(_measured(one, (s, w), policy), (w, p), policy)
        for one, s, w, p in zip(evidence, known, walked, st.holm(p_values), strict=True)
    ]


def looks_apply(policy: Policy) -> bool:
    """True where a benchmark may be decided before all of it was asked: a point rule has no error to spend on looks."""
    return policy.sequential and policy.decision == "ci"


def looks_of(policy: Policy, num_rows: int, *, num_suites: int) -> st.Plan:
    """The looks at a benchmark of this size in a report with so many benchmarks, and what decides at each."""
    return st.plan(
        num_rows, margin=policy.warn_margin, block_margin=policy.block_margin, confidence=policy.confidence,
        num_suites=num_suites, at_least=policy.minimum_rows,
    )  # fmt: skip


def _p_value(pairs: Sequence[Pair], how: tuple[list[st.Look], _Suite], policy: Policy) -> float:
    """p of "it falls by no more than the margin", over all looks taken."""
    found, suite = how
    if found and suite.plan:
        return st.sequential_p(found, suite.plan)
    return st.p_value_of(*scores(pairs), margin=policy.warn_margin, clusters=suite.clusters)


def _measured(evidence: Evidence, how: tuple[_Suite, list[st.Look]], policy: Policy) -> GateResult:
    (name, rows), (suite, looks) = evidence, how
    rows = rows[: looks[-1].rows] if looks else rows
    base, adapter = means(rows)
    interval = difference_interval(rows, policy.confidence, clusters=suite.clusters and suite.clusters[: len(rows)])
    if looks:
        interval = st.Interval(point=adapter - base, low=looks[-1].low, high=looks[-1].high)
    return GateResult(
        name=name, kind="benchmark", verdict=Verdict.INCONCLUSIVE, base=st.rounded(base), adapter=st.rounded(adapter),
        difference=st.rounded(adapter - base), low=st.rounded(interval.low), high=st.rounded(interval.high),
        threshold=-policy.warn_margin, rows=len(rows), rule=_rule(policy, suite),
        facts={**discordance(rows), **_mcnemar(rows), **_looks(looks, suite), **_subjects(rows, policy)},
    )  # fmt: skip


def _decided(result: GateResult, how: tuple[list[st.Look], float], policy: Policy) -> GateResult:
    looks, p_value = how
    verdict = _verdict(result, (looks, p_value), policy)
    result = replace(result, verdict=verdict, facts={**result.facts, "holm_p": short(p_value)})
    return replace(result, reason=_reason(result, policy))


def _verdict(result: GateResult, how: tuple[list[st.Look], float], policy: Policy) -> Verdict:
    difference, enough = number(result.difference), result.rows >= policy.minimum_rows
    looks, p_value = how
    if policy.decision == "point":
        return by_bounds(difference >= -policy.warn_margin, difference <= -policy.block_margin)
    # the hard rule needs every question: at an early look a fall of three points may be chance
    whole = not looks or looks[-1].rows == result.facts["rows_planned"]
    if p_value <= policy.alpha or (enough and whole and difference <= -policy.block_margin):
        return Verdict.FAIL
    return Verdict.PASS if enough and number(result.low) > -policy.warn_margin else Verdict.INCONCLUSIVE


def _rule(policy: Policy, suite: _Suite) -> str:
    said = f"falls by less than {points(policy.warn_margin)}; {points(policy.block_margin)} lower fails at once"
    if suite.plan and len(suite.plan.looks) > 1:
        said += f"; looked at after {', '.join(f'{n:,}' for n in suite.plan.looks)} questions, and decided as soon as one tells"
    return said


def _mcnemar(rows: Sequence[Pair]) -> dict[str, float]:
    return {"mcnemar_p": short(st.mcnemar(st.count_pairs(*scores(rows))))}


def _looks(found: list[st.Look], suite: _Suite) -> dict[str, Any]:
    if not (found and suite.plan):
        return {}
    return {
        "rows_planned": suite.plan.looks[-1],
        "critical_value": st.rounded(suite.plan.pass_critical),
        "looks": [{**asdict(look), "z": None if abs(look.z) > 1e6 else st.rounded(look.z)} for look in found],
    }


def _subjects(rows: Sequence[Pair], policy: Policy) -> dict[str, Any]:
    names = [p.stratum for p in rows]
    if len(set(names)) < 2:
        return {}
    base, adapter = scores(rows)
    table = st.strata_table(base, adapter, names)
    inside = st.stratified([a - b for b, a in zip(base, adapter, strict=True)], names, policy.confidence)
    return {
        "subjects": [asdict(s) for s in table],
        "subjects_flagged": [s.name for s in table if s.holm_p <= policy.alpha],
        "stratified_low": st.rounded(inside.low),
        "stratified_high": st.rounded(inside.high),
    }


def _reason(result: GateResult, policy: Policy) -> str:
    difference, low, high = number(result.difference), number(result.low), number(result.high)
    if difference < 0:
        sure = f"at least {points(-high)} lower" if high < 0 else f"at most {points(-low)} lower"
        said = f"{result.name} fell by {points(-difference)} ({bound(policy)}: {sure})"
    else:
        moved = f"rose by {points(difference)}" if difference else "did not move"
        said = f"{result.name} {moved} ({bound(policy)}: {_at_most(low)})"
    said += f"; the policy allows less than {points(policy.warn_margin)}"
    if flagged := result.facts.get("subjects_flagged"):
        said += f"; {', '.join(flagged[:3])} fell by more than chance"
    if result.rows < result.facts.get("rows_planned", 0):
        said += f"; {result.rows:,} of {count(result.facts['rows_planned'], 'question')} were enough to tell"
    if result.verdict is Verdict.INCONCLUSIVE and policy.decision == "ci":
        few = result.rows < policy.minimum_rows
        more = f"a PASS needs {policy.minimum_rows}" if few else "more questions would tell"
        said += f"; {count(result.rows, 'question')} cannot tell: {more}"
    return said


def _at_most(low: float) -> str:
    return f"at most {points(-low)} lower" if low <= 0 else f"at least {points(low)} higher"
