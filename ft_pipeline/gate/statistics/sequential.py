"""Group-sequential looks: a suite is asked in a fixed random order and may be decided early, without more false verdicts.

Pocock's boundary (1977, Biometrika 64:191): the same critical value c at every look. c is not taken from a table of equally spaced
looks, as ours double: it is solved from the joint distribution of the looks by recursive integration (Armitage, McPherson and
Rowe 1969, JRSS A 132:235). For 500, 1k, 2k, 4k, 8k, 14,042 at 95% one-sided that is 2.265; for two looks 500 and 1,172 it is 1.89.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ft_pipeline.gate.statistics.intervals import Interval, count_pairs, is_binary, rounded, tango_at, tango_z

FIXED_LOOKS = (500, 1_000, 2_000, 4_000, 8_000)
LAST_GAP = 0.8
"""A look beyond this share of the suite saves little and costs every other look some power."""
NODES = 64
"""Gauss-Legendre nodes of the integration: 48 and 256 give the same c to 1e-10; two critical values take 0.1 s."""
LOWEST_Z = -9.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """When one suite is looked at and what decides it. A function of the suite's size and the policy alone, never of scores."""

    looks: tuple[int, ...]
    """Rows at each look; the last is the whole suite."""
    margin: float
    """PASS: shown to fall by less. FAIL: shown to fall by more."""
    block_margin: float
    """At the last look a point estimate that fell by this much fails too."""
    confidence: float
    pass_critical: float
    fail_critical: float
    """Higher than `pass_critical` when several suites may fail the same report (Bonferroni over the suites)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one look said. `low` and `high` hold at all looks together (repeated confidence interval)."""

    rows: int
    verdict: Literal["PASS", "FAIL", "CONTINUE", "INCONCLUSIVE"]
    """CONTINUE asks for the rows of the next look; INCONCLUSIVE is what it is called at the last one."""
    difference: float
    low: float
    high: float
    z: float
    """Score statistic at the margin: PASS from `pass_critical`, FAIL down to `-fail_critical`."""


def looks(num_rows: int, at_least: int = 0) -> tuple[int, ...]:
    """The rows at which a suite of this size is looked at: 500, 1k, 2k, 4k, 8k as far as they fit, and all of it.

    `at_least`: no look before so many rows, where a policy decides nothing on fewer.
    """
    return (*(n for n in FIXED_LOOKS if at_least <= n <= LAST_GAP * num_rows), num_rows)


def plan(
    num_rows: int,
    *,
    margin: float,
    block_margin: float,
    confidence: float = 0.95,
    num_suites: int = 1,
    at_least: int = 0,
) -> Plan:
    """The plan of a suite. `num_suites`: how many of the report may FAIL; PASS needs all of them, so it pays nothing for that."""
    at = looks(num_rows, at_least)
    return Plan(
        looks=at, margin=margin, block_margin=block_margin, confidence=confidence,
        pass_critical=pocock(at, confidence), fail_critical=pocock(at, 1 - (1 - confidence) / num_suites),
    )  # fmt: skip


def look_verdict(base: Sequence[float], adapter: Sequence[float], plan: Plan) -> Look:
    """The verdict on the rows asked so far: scores in the plan's order, as many as one of its looks says.

    Raises ValueError for any other number of rows: a look that was not planned is a look too many.
    """
    rows = len(base)
    if rows not in plan.looks:
        raise ValueError(f"{rows} rows are none of the planned looks {plan.looks}")
    interval, z = _measured(base, adapter, plan)
    last = rows == plan.looks[-1]
    verdict: Literal["PASS", "FAIL", "CONTINUE", "INCONCLUSIVE"] = "INCONCLUSIVE" if last else "CONTINUE"
    if z <= -plan.fail_critical or (last and rounded(interval.point) <= -plan.block_margin):
        verdict = "FAIL"
    elif rounded(interval.low) > -plan.margin:
        verdict = "PASS"
    return Look(
        rows=rows, verdict=verdict, difference=rounded(interval.point), low=rounded(interval.low), high=rounded(interval.high), z=z
    )  # fmt: skip


def walk(base: Sequence[float], adapter: Sequence[float], plan: Plan) -> list[Look]:
    """Every look up to the first that decides, or to the end of the scores: the last one holds the verdict.

    Raises ValueError when the scores end before the first look.
    """
    if len(base) < plan.looks[0]:
        raise ValueError(f"{len(base)} rows are fewer than the first of the planned looks {plan.looks}")
    found: list[Look] = []
    for rows in (n for n in plan.looks if n <= len(base)):
        found.append(look_verdict(base[:rows], adapter[:rows], plan))
        if found[-1].verdict != "CONTINUE":
            break
    return found


def sequential_p(found: Sequence[Look], plan: Plan) -> float:
    """p of "the true difference is at least -margin" over all looks taken (Liu and Anderson 2008): small when much worse.

    The probability that a harmless adapter shows a statistic this low at any planned look; what Holm corrects over suites.
    """
    return crossing_probability(plan.looks, -min(look.z for look in found))


@functools.lru_cache(maxsize=256)
def pocock(at: tuple[int, ...], confidence: float = 0.95) -> float:
    """The critical value that a statistic without effect reaches at any of the looks with probability 1 - confidence."""
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        if crossing_probability(at, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def crossing_probability(at: tuple[int, ...], critical: float) -> float:
    """Probability that a standard normal statistic with independent increments is at least `critical` at one of the looks."""
    import numpy as np

    if abs(critical) >= -LOWEST_Z - 1:
        return float(critical < 0)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = (critical - LOWEST_Z) / 2
    z, weights = LOWEST_Z + half * (nodes + 1), weights * half
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    for before, now in itertools.pairwise(at):
        step = math.sqrt((now - before) / now)
        shift = (z[:, None] - z[None, :] * math.sqrt(before / now)) / step
        kernel = np.exp(-shift * shift / 2) / (math.sqrt(2 * math.pi) * step)
        density = kernel @ (density * weights)
    return float(min(max(1 - density @ weights, 0.0), 1.0))


def _measured(base: Sequence[float], adapter: Sequence[float], plan: Plan) -> tuple[Interval, float]:
    """The repeated interval and the statistic at the margin: Tango's for right and wrong, the mean's for graded scores."""
    if is_binary(base) and is_binary(adapter):
        pairs = count_pairs(base, adapter)
        return tango_at(pairs, plan.pass_critical), tango_z(pairs, -plan.margin)
    differences = [a - b for b, a in zip(base, adapter, strict=True)]
    mean = math.fsum(differences) / len(differences)
    spread = math.sqrt(
        math.fsum((d - mean) ** 2 for d in differences) / max(len(differences) - 1, 1) / len(differences)
    )
    half, distance = plan.pass_critical * spread, mean + plan.margin
    z = distance / spread if spread else math.copysign(math.inf, distance) if distance else 0.0
    return Interval(point=mean, low=mean - half, high=mean + half), z
