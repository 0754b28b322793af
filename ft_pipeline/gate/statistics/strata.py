"""Differences where rows belong together: strata that were fixed beforehand (subjects), clusters that were drawn (shared passages)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ft_pipeline.gate.statistics.intervals import Interval, count_pairs, holm, is_binary, p_value_below, rounded

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """One subject of a suite."""

    name: str
    rows: int
    base: float
    adapter: float
    gains: int
    losses: int
    holm_p: float
    """One-sided exact sign test of "losses are no likelier than gains", Holm-corrected over the strata."""


def stratified(differences: Sequence[float], strata: Sequence[str], confidence: float = 0.95) -> Interval:
    """Interval of the mean with strata weighted by their rows: what differs between strata is no error of the mean.

    The point is that of `paired_t`; the error leaves out the spread between strata. A stratum of one row takes the overall
    variance, which is too large rather than too small. t with rows - strata degrees of freedom (Cochran 1977, 5.4).
    """
    from scipy.stats import t

    num, groups = len(differences), _groups(differences, strata)
    mean = math.fsum(differences) / num
    overall = _variance(differences)
    error = sum(len(g) * (_variance(g) if len(g) > 1 else overall) for g in groups.values()) / num**2
    degrees = num - len(groups)
    if degrees < 1:
        return Interval(point=mean, low=-math.inf, high=math.inf)
    half = float(t.ppf(confidence, degrees)) * math.sqrt(error)
    return Interval(point=mean, low=mean - half, high=mean + half)


def clustered(differences: Sequence[float], clusters: Sequence[str], confidence: float = 0.95) -> Interval:
    """Interval of the mean where rows of a cluster are not independent (Miller 2024, arXiv 2411.00640, appendix A).

    Squared sums of residuals of clusters, times C / (C - 1), with t of C - 1: few clusters know little, one knows nothing.
    """
    from scipy.stats import t

    num, groups = len(differences), _groups(differences, clusters)
    mean = math.fsum(differences) / num
    if len(groups) == 1:
        return Interval(point=mean, low=-math.inf, high=math.inf)
    squares = math.fsum(math.fsum(d - mean for d in group) ** 2 for group in groups.values())
    error = math.sqrt(squares * len(groups) / (len(groups) - 1)) / num
    half = float(t.ppf(confidence, len(groups) - 1)) * error
    return Interval(point=mean, low=mean - half, high=mean + half)


def p_value_of(
    base: Sequence[float], adapter: Sequence[float], *, margin: float, clusters: Sequence[str] | None = None
) -> float:
    """p of "the true difference is at least -margin": Tango's for right and wrong, Student's for graded and clustered scores."""
    from scipy.stats import t

    if not clusters and is_binary(base) and is_binary(adapter):
        return p_value_below(count_pairs(base, adapter), margin)
    differences = [a - b for b, a in zip(base, adapter, strict=True)]
    interval = clustered(differences, clusters or [str(n) for n in range(len(differences))])
    degrees = (len(set(clusters)) if clusters else len(differences)) - 1
    if not math.isfinite(interval.low):
        return 1.0
    error = (interval.point - interval.low) / float(t.ppf(0.95, degrees))
    distance = interval.point + margin
    if error == 0:
        return 0.0 if distance < 0 else 1.0
    return float(t.cdf(distance / error, degrees))


def strata_table(base: Sequence[float], adapter: Sequence[float], strata: Sequence[str]) -> list[Stratum]:
    """Every stratum with its own scores, the one that lost most first. Flag those with `holm_p` at most alpha."""
    groups = _groups(list(zip(base, adapter, strict=True)), strata)
    counted = [(sum(a > b for b, a in rows), sum(a < b for b, a in rows)) for rows in groups.values()]
    adjusted = holm([_sign_test(gains, losses) for gains, losses in counted])
    found = [
        Stratum(
            name=name, rows=len(rows), base=rounded(math.fsum(b for b, _ in rows) / len(rows)),
            adapter=rounded(math.fsum(a for _, a in rows) / len(rows)), gains=gains, losses=losses, holm_p=float(f"{p:.3g}"),
        )
        for (name, rows), (gains, losses), p in zip(groups.items(), counted, adjusted, strict=True)
    ]  # fmt: skip
    return sorted(found, key=lambda s: (s.adapter - s.base, s.name))


def _sign_test(gains: int, losses: int) -> float:
    from scipy.stats import binom

    return float(binom.cdf(gains, gains + losses, 0.5))


def _groups(values: Sequence[T], names: Sequence[str]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = defaultdict(list)
    for value, name in zip(values, names, strict=True):
        found[name].append(value)
    return dict(sorted(found.items()))


def _variance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
