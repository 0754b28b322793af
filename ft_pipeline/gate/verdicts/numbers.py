"""What the verdicts of all kinds count alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import Verdict
from ft_pipeline.gate.samples import Pair


def by_bounds(passes: bool, fails: bool) -> Verdict:
    """INCONCLUSIVE where the bounds decide neither."""
    return Verdict.PASS if passes else Verdict.FAIL if fails else Verdict.INCONCLUSIVE


def scores(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Scores of base and adapter, in the order of the pairs."""
    return [p.base_score for p in pairs], [p.adapter_score for p in pairs]


def means(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Mean scores of base and adapter."""
    num = len(pairs)
    return math.fsum(p.base_score for p in pairs) / num, math.fsum(p.adapter_score for p in pairs) / num


def discordance(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many questions the adapter won and lost."""
    counted = st.count_pairs(*scores(pairs))
    return {"gains": counted.gains, "losses": counted.losses}


def difference_interval(pairs: Sequence[Pair], confidence: float, clusters: Sequence[str] | None = None) -> st.Interval:
    """Adapter minus base: clustered where rows share something, Tango's for right and wrong, Student's for graded scores."""
    base, adapter = scores(pairs)
    if not clusters and st.is_binary(base) and st.is_binary(adapter):
        return st.tango(st.count_pairs(base, adapter), confidence)
    differences = [a - b for b, a in zip(base, adapter, strict=True)]
    found = st.clustered(differences, clusters, confidence) if clusters else st.paired_t(differences, confidence)
    # a difference of shares lies in [-1, 1], which is all that a single row or cluster can say
    return st.Interval(point=found.point, low=max(found.low, -1.0), high=min(found.high, 1.0))


def moved(value: float, by: float) -> float | None:
    """A bound on another axis; None where it is infinite."""
    return st.rounded(value + by) if math.isfinite(value) else None


def short(p_value: float) -> float:
    """Three significant digits."""
    return float(f"{p_value:.3g}")


def number(value: float | None) -> float:
    """The value for a comparison; one that was not measured compares false."""
    return math.nan if value is None else value
