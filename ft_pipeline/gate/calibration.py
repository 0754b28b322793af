"""Calibration of a benchmark: does an arm that is 80% sure of its choice answer 80% right? Read from the stored answers, no torch here.

The confidence is the softmax of the choices' log-likelihoods at the choice that was made, per character where the benchmark is scored so.
ECE is the mean distance of confidence and accuracy over ten bins, weighted by their answers (Guo et al. 2017, arXiv 1706.04599).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ft_pipeline.gate.samples import Pair

BINS = 10
FEWEST = 50
"""Answers below which the bins show chance alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """The answers whose confidence lies in one tenth of [0, 1]."""

    confidence: float
    """Mean, in [0, 1]."""
    accuracy: float
    """Share of right answers."""
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How sure one arm was, and how right."""

    name: str
    bins: tuple[Bin, ...]
    """Those that hold an answer, in order."""
    ece: float
    """Expected calibration error, in [0, 1]."""
    confidence: float
    """Mean over all answers."""
    accuracy: float


def calibration(pairs: Sequence[Pair]) -> tuple[Arm, Arm] | None:
    """Base and adapter; None where the answers hold no log-likelihoods, are graded, or are fewer than 50."""
    if len(pairs) < FEWEST or any(p.base_score not in (0, 1) or p.adapter_score not in (0, 1) for p in pairs):
        return None
    base = [(confidence(p.base_output), p.base_score) for p in pairs]
    adapter = [(confidence(p.adapter_output), p.adapter_score) for p in pairs]
    if any(sure is None for sure, _ in (*base, *adapter)):
        return None
    return _arm("base", base), _arm("adapter", adapter)


def confidence(output: str) -> float | None:
    """Softmax of the log-likelihoods in a stored answer at the likeliest choice, None where it holds none."""
    try:
        said = json.loads(output)
    except ValueError:
        return None
    values = said.get("log_likelihood") or said.get("per_character") if isinstance(said, dict) else None
    if not isinstance(values, list) or not values or not all(isinstance(v, int | float) for v in values):
        return None
    top = max(values)
    return 1 / math.fsum(math.exp(v - top) for v in values)


def _arm(name: str, answers: Sequence[tuple[float | None, float]]) -> Arm:
    sure = [(c, right) for c, right in answers if c is not None]
    groups: dict[int, list[tuple[float, float]]] = {}
    for c, right in sure:
        groups.setdefault(min(int(c * BINS), BINS - 1), []).append((c, right))
    bins = tuple(_bin(groups[place]) for place in sorted(groups))
    ece = math.fsum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / len(sure)
    whole = _bin(sure)
    return Arm(name=name, bins=bins, ece=round(ece, 4), confidence=whole.confidence, accuracy=whole.accuracy)


def _bin(answers: Sequence[tuple[float, float]]) -> Bin:
    num = len(answers)
    return Bin(
        confidence=round(math.fsum(c for c, _ in answers) / num, 4),
        accuracy=round(math.fsum(right for _, right in answers) / num, 4),
        rows=num,
    )
