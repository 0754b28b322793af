"""Intervals and tests behind the verdicts. Every bound is one-sided at the given confidence; every share is in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

DIGITS = 6
"""Bounds and differences are rounded to this before a comparison: 0.64 - 0.62 > 0.02 in floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A point estimate with its one-sided lower and upper bound: together a two-sided interval of 2 * confidence - 1."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Right and wrong answers of two arms to the same questions."""

    rows: int
    gains: int
    """Right in the adapter's arm only."""
    losses: int
    """Right in the base's arm only."""

    @property
    def difference(self) -> float:
        """Share right, adapter minus base."""
        return (self.gains - self.losses) / self.rows

    @property
    def swapped(self) -> Pairs:
        """The same answers with the arms exchanged."""
        return Pairs(rows=self.rows, gains=self.losses, losses=self.gains)


def rounded(value: float) -> float:
    """The value as it is compared and shown."""
    return round(value, DIGITS) + 0.0


def count_pairs(base: Sequence[float], adapter: Sequence[float]) -> Pairs:
    """Discordant pairs of 0/1 scores in the same order."""
    gains = sum(a > b for b, a in zip(base, adapter, strict=True))
    losses = sum(a < b for b, a in zip(base, adapter, strict=True))
    return Pairs(rows=len(base), gains=gains, losses=losses)


def is_binary(scores: Sequence[float]) -> bool:
    """True when every score is right or wrong, nothing between."""
    return all(s in (0.0, 1.0) for s in scores)


def tango(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """Score interval of the difference of two paired shares (Tango 1998, Statistics in Medicine 17:891-908).

    Chosen because Wald's interval lets twice the nominal share of harmful adapters through at 3-6% discordance.
    """
    return tango_at(pairs, _quantile(confidence))


def tango_at(pairs: Pairs, z: float) -> Interval:
    """Tango's interval of a critical value, where a look asks for more than the normal quantile."""
    return Interval(point=pairs.difference, low=_tango_low(pairs, z), high=-_tango_low(pairs.swapped, z))


def tango_z(pairs: Pairs, difference: float) -> float:
    """Score statistic of the hypothesis that the true difference is `difference`; negative when the sample lies below it.

    The nuisance share is its constrained maximum-likelihood estimate, the root of Tango's quadratic.
    """
    n, b, c = pairs.rows, pairs.gains, pairs.losses
    linear = (2 * n - b + c) * difference - b - c
    root = math.sqrt(max(linear * linear + 8 * n * c * difference * (1 - difference), 0.0))
    nuisance = (root - linear) / (4 * n)
    variance = n * (2 * nuisance + difference * (1 - difference))
    distance = b - c - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def p_value_below(pairs: Pairs, margin: float) -> float:
    """p of the hypothesis "the true difference is at least -margin": small when the adapter is worse by more."""
    return _normal_cdf(tango_z(pairs, -margin))


def paired_t(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of a mean of per-row values; the whole line for a single row."""
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(point=mean, low=-math.inf, high=math.inf)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(t.ppf(confidence, n - 1)) * error
    return Interval(point=mean, low=mean - half, high=mean + half)


def clopper_pearson(successes: int, rows: int, confidence: float = 0.95) -> Interval:
    """Exact one-sided bounds of a share (Clopper and Pearson 1934). 59 of 59 gives .9505: the least that shows .95."""
    from scipy.stats import beta

    low = 0.0 if successes == 0 else float(beta.ppf(1 - confidence, successes, rows - successes + 1))
    high = 1.0 if successes == rows else float(beta.ppf(confidence, successes + 1, rows - successes))
    return Interval(point=successes / rows, low=low, high=high)


def mcnemar(pairs: Pairs) -> float:
    """Exact two-sided p of "gains and losses are equally likely" (McNemar 1947, binomial form)."""
    from scipy.stats import binom

    discordant = pairs.gains + pairs.losses
    return min(1.0, 2 * float(binom.cdf(min(pairs.gains, pairs.losses), discordant, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values (Holm 1979), in the given order: compare each with alpha."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted


def _tango_low(pairs: Pairs, z: float) -> float:
    """The least difference that the sample does not contradict."""
    if pairs.losses == pairs.rows:
        return -1.0
    return _falling_root(lambda d: tango_z(pairs, d) - z, -1.0, pairs.difference)


def _falling_root(function: Callable[[float], float], left: float, right: float) -> float:
    """Where a falling function crosses zero, by bisection to 1e-12."""
    for _ in range(60):
        middle = (left + right) / 2
        if function(middle) > 0:
            left = middle
        else:
            right = middle
    return (left + right) / 2


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(confidence)


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2
