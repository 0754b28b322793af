"""The verdict of a judge: the rate at which the adapter's answers are preferred, and whether this judge can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.verdicts.numbers import by_bounds
from ft_pipeline.gate.wording import bound, count, percent
from ft_pipeline.judging.duels import COMPARED, SAME_TEXT, SPOILT, Outcome, first_place_rate, outcomes
from ft_pipeline.judging.transcripts import Row, failures

NAME = "judge"


def judge(rows: Sequence[Row], policy: Policy, *, who: str) -> GateResult:
    """The gate of a transcript, which is all that it takes; calls about safety may be in it. `who`: the judge's name.

    Per prompt the mean of both orders, bounds over prompts. On the axis of the difference (adapter's rate minus base's) the policy's
    threshold t lies at 2t - 1, so that `low`, `high` and `threshold` read as everywhere else; the rates are among the facts.
    """
    audit = _audited([row for row in rows if row["kind"] in COMPARED])
    rule = f"preferred to the base in at least {percent(policy.judge_threshold)} of comparisons, ties half, by a judge that passes its controls"
    result = GateResult(
        name=NAME,
        kind="judge",
        verdict=Verdict.ERROR,
        rule=rule,
        rows=len(audit.scores),
        facts={"judge": who, **audit.facts},
    )
    if audit.failed_share > policy.judge_failures or not audit.scores:
        return replace(result, reason=_failed(audit, policy))
    found = interval(audit.scores, policy.confidence)
    rate, low, high = (st.rounded(v) for v in (found.point, found.low, found.high))
    result = replace(
        result, base=st.rounded(1 - rate), adapter=rate, difference=st.rounded(2 * rate - 1), low=st.rounded(2 * low - 1),
        high=st.rounded(2 * high - 1), threshold=st.rounded(2 * policy.judge_threshold - 1),
    )  # fmt: skip
    verdict, faults = _verdict((rate, low, high), len(audit.scores), policy), _faults(audit, policy)
    said = _said(result, (low, high, verdict), policy)
    if faults:
        return replace(
            result, verdict=Verdict.INCONCLUSIVE, reason=f"this judge cannot be believed: {'; '.join(faults)}. {said}"
        )
    return replace(result, verdict=verdict, reason=said)


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """What a transcript shows of answers and of its judge."""

    scores: list[float]
    """Of the adapter, one for each prompt that was judged in both orders."""
    num_calls: int
    failed: dict[str, int]
    consistency: float
    """NaN where every pair of answers was the same text."""
    first_place: float
    spoilt: float
    facts: dict[str, Any]

    @property
    def failed_share(self) -> float:
        """Of all calls, the controls' included."""
        return st.rounded(sum(self.failed.values()) / self.num_calls) if self.num_calls else 0.0


def interval(scores: Sequence[float], confidence: float) -> st.Interval:
    """Of a mean of scores in [0, 1]: Student's; without any spread that of a binomial, which no score in [0, 1] spreads more than."""
    if len(set(scores)) > 1:
        found = st.paired_t(scores, confidence)
        return st.Interval(point=found.point, low=max(found.low, 0.0), high=min(found.high, 1.0))
    total, num = math.fsum(scores), len(scores)
    low = st.clopper_pearson(math.floor(total), num, confidence).low
    high = st.clopper_pearson(math.ceil(total), num, confidence).high
    return st.Interval(point=total / num, low=low, high=high)


def length_controlled(found: Sequence[Outcome]) -> tuple[float, float]:
    """The rate at equal length, and the mean difference of lengths in characters (adapter - base).

    A line through score over tanh(difference / its spread), read at 0: AlpacaEval's covariate (Dubois et al. 2024) without its other terms.
    """
    deltas = [float(o.characters[1] - o.characters[0]) for o in found]
    scores, spread = [o.score or 0.0 for o in found], pstdev(deltas)
    mean_score = fmean(scores)
    if not spread:
        return mean_score, fmean(deltas)
    shifts = [math.tanh(d / spread) for d in deltas]
    centre = fmean(shifts)
    square = math.fsum((x - centre) ** 2 for x in shifts)
    slope = (
        math.fsum((x - centre) * (y - mean_score) for x, y in zip(shifts, scores, strict=True)) / square
        if square
        else 0.0
    )
    return min(max(mean_score - slope * centre, 0.0), 1.0), fmean(deltas)


def _audited(rows: Sequence[Row]) -> _Audit:
    pairs = outcomes(rows)
    judged = [o for o in pairs if o.score is not None]
    asked = [o for o in judged if not o.same_text]
    calls = [row for row in rows if row["parsed_by"] != SAME_TEXT]
    worse = [o.score for o in outcomes(rows, SPOILT) if o.score is not None]
    place, num_twice = first_place_rate(rows)
    consistency = fmean(o.is_consistent for o in asked) if asked else math.nan
    spoilt = fmean(worse) if worse else math.nan
    failed = failures(rows)
    facts: dict[str, Any] = {
        "calls": len(calls), "failures": failed, "prompts": len(pairs), "missing": len(pairs) - len(judged),
        "same_text": sum(o.same_text for o in judged), "consistency": _fact(consistency),
        "identical_first_wins": _fact(place), "identical_prompts": num_twice, "spoilt_wins": _fact(spoilt), "spoilt_prompts": len(worse),
        "prompt_sha": sorted({row["prompt_sha"][:16] for row in rows}), **(_biases(judged, asked) if judged else {}),
    }  # fmt: skip
    return _Audit(
        scores=[o.score for o in judged if o.score is not None], num_calls=len(calls), failed=failed, consistency=consistency,
        first_place=place, spoilt=spoilt, facts=facts,
    )  # fmt: skip


def _biases(judged: Sequence[Outcome], asked: Sequence[Outcome]) -> dict[str, Any]:
    """What one would see of position and length in the real comparisons."""
    rate, delta = length_controlled(judged)
    first = [share for o in asked for share in (1 - (o.baseline_first or 0.0), o.challenger_first or 0.0)]
    decided = [o for o in asked if o.score != 0.5 and o.characters[0] != o.characters[1]]
    longer = [(o.characters[1] > o.characters[0]) == ((o.score or 0.0) > 0.5) for o in decided]
    return {
        "wins": sum((o.score or 0.0) > 0.5 for o in judged), "ties": sum(o.score == 0.5 for o in judged),
        "losses": sum((o.score or 0.0) < 0.5 for o in judged), "length_controlled_rate": st.rounded(rate), "length_delta": round(delta, 1),
        "first_place_wins": _fact(fmean(first) if first else math.nan), "longer_wins": _fact(fmean(longer) if longer else math.nan),
        "rate_base_first": _fact(fmean(o.baseline_first or 0.0 for o in asked) if asked else math.nan),
        "rate_adapter_first": _fact(fmean(o.challenger_first or 0.0 for o in asked) if asked else math.nan),
    }  # fmt: skip


def _faults(audit: _Audit, policy: Policy) -> list[str]:
    """Why the judge is not valid: sentences, none when it is."""
    faults = []
    if st.rounded(audit.consistency) < policy.judge_consistency:
        faults.append(
            f"it named the same winner in both orders for {percent(audit.consistency)} of prompts, {percent(policy.judge_consistency)} are needed"
        )
    low, high = policy.judge_identical_low, policy.judge_identical_high
    if not low <= st.rounded(audit.first_place) <= high:
        told = "nobody" if math.isnan(audit.first_place) else percent(audit.first_place)
        faults.append(
            f"of two equal answers the first won {told}, which must lie between {percent(low)} and {percent(high)}"
        )
    if not st.rounded(audit.spoilt) <= policy.judge_degraded:
        told = "were not judged" if math.isnan(audit.spoilt) else f"won {percent(audit.spoilt)}"
        faults.append(f"answers spoilt on purpose {told}, at most {percent(policy.judge_degraded)} are allowed")
    return faults


def _verdict(numbers: tuple[float, float, float], rows: int, policy: Policy) -> Verdict:
    rate, low, high = numbers
    if policy.decision == "point":
        return Verdict.PASS if rate >= policy.judge_threshold else Verdict.FAIL
    verdict = by_bounds(low > policy.judge_threshold, high < policy.judge_threshold)
    return Verdict.INCONCLUSIVE if verdict is Verdict.PASS and rows < policy.minimum_rows else verdict


def _said(result: GateResult, found: tuple[float, float, Verdict], policy: Policy) -> str:
    low, high, verdict = found
    sure = f"at most {percent(high)}" if verdict is Verdict.FAIL else f"at least {percent(low)}"
    few = policy.decision == "ci" and result.rows < policy.minimum_rows
    short = f"; {result.rows} prompts are fewer than the {policy.minimum_rows} that a PASS needs" if few else ""
    level = percent(result.facts["length_controlled_rate"])
    return (
        f"{result.facts['judge']} prefers the adapter's answer in {percent(result.adapter or 0.0)} of {count(result.rows, 'comparison')}, ties "
        f"half ({bound(policy)}: {sure}; at equal length {level}); the policy asks for more than {percent(policy.judge_threshold)}{short}"
    )


def _failed(audit: _Audit, policy: Policy) -> str:
    told = ", ".join(f"{number:,} {cause}" for cause, number in audit.failed.items()) or "none was asked"
    return (
        f"{sum(audit.failed.values()):,} of {count(audit.num_calls, 'call')} to the judge gave no verdict ({told}); the policy allows "
        f"{percent(policy.judge_failures)}. Mend the judge, count up `attempt` in the recipe's judge section, and run again"
    )


def _fact(value: float) -> float | None:
    return None if math.isnan(value) else st.rounded(value)
