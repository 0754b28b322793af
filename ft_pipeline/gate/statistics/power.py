"""How many rows a verdict needs: power and sample size of the rules, by their normal limits and exactly where that is cheap."""

from __future__ import annotations

import math
from statistics import NormalDist

from ft_pipeline.gate.statistics.intervals import clopper_pearson

NORMAL = NormalDist()


def rows_for_non_inferiority(
    *, margin: float, discordance: float, difference: float = 0.0, power: float = 0.9, confidence: float = 0.95
) -> int:
    """Questions that show "falls by less than margin" with this power when the truth is `difference`.

    Variance of a paired difference of 0/1 scores: discordance - difference^2. Margin 2 points, 6% discordance: 1,285.
    """
    room = margin + difference
    if room <= 0:
        raise ValueError(f"a true difference of {difference} lies at or beyond the margin {margin}: no size shows it")
    z = NORMAL.inv_cdf(confidence) + NORMAL.inv_cdf(power)
    return math.ceil((discordance - difference**2) * (z / room) ** 2)


def power_of_non_inferiority(
    rows: int, *, margin: float, discordance: float, difference: float = 0.0, confidence: float = 0.95
) -> float:
    """Probability of PASS of one look at all rows."""
    error = math.sqrt(max(discordance - difference**2, 1e-12) / rows)
    return NORMAL.cdf((margin + difference) / error - NORMAL.inv_cdf(confidence))


def power_of_exact_rate(rows: int, *, rate: float, truth: float, confidence: float = 0.95) -> float:
    """Probability that the exact lower bound of a share reaches `rate` when it is `truth`. 513 prompts, .95, truth .98: 98%."""
    from scipy.stats import binom

    failures = most_failures(rows, rate=rate, confidence=confidence)
    return 0.0 if failures is None else float(binom.cdf(failures, rows, 1 - truth))


def most_failures(rows: int, *, rate: float, confidence: float = 0.95) -> int | None:
    """The most failures that still show the rate: 17 of 513 at .95. None where even no failure does."""
    if clopper_pearson(rows, rows, confidence).low < rate:
        return None
    low, high = 0, rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if clopper_pearson(rows - middle, rows, confidence).low >= rate else (low, middle)
    return low
