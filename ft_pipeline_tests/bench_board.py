"""The board of `make bench`: times contenders through pytest-benchmark, writes the ratios at the end. A plugin: `-p ft_pipeline_tests.bench_board`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Lap:
    """The best round of a contender, and what else is to be said of it."""

    who: str
    seconds: float
    rate: str
    fact: str


LAPS: dict[str, list[Lap]] = {}
"""By race, in order; the first contender of a race is ours."""


@pytest.fixture
def lap(benchmark) -> Callable[..., Any]:
    """Times `work` and notes it; what comes back is what the work gave.

    Also takes `rounds`, `warmup`, `amount` and `unit` for a rate, and `fact`: what to say of the result.
    """

    def run(race: str, who: str, work: Callable[[], Any], **told: Any) -> Any:
        benchmark.group = race
        given = benchmark.pedantic(work, rounds=told.get("rounds", 3), warmup_rounds=told.get("warmup", 1))
        best = benchmark.stats.stats.min
        rate = f"{told['amount'] / best:,.0f} {told['unit']}/s" if "amount" in told else ""
        fact = told["fact"](given) if "fact" in told else ""
        LAPS.setdefault(race, []).append(Lap(who, best, rate, fact))
        return given

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Per contender the best round, its rate, and how many times as long as ours it takes."""
    for line in _told():
        terminalreporter.write_line(line)


def _told() -> Iterator[str]:
    yield f"best round of each; how many times as long as ours (the first) it takes; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    for race, laps in LAPS.items():
        yield f"\n{race}"
        for one in laps:
            ratio = one.seconds / laps[0].seconds
            yield f"  {one.who:<54} {1000 * one.seconds:>9.1f} ms {ratio:>8.2f}x  {one.rate:<20} {one.fact}".rstrip()


def sentences(number: int, characters: int, *, seed: int) -> list[str]:
    """Texts of made-up words with the lengths and repetitions of prose."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aabcdeeefghiilmnnoopprsstttuvwy", k=draw.randint(2, 9))) for _ in range(4000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return [" ".join(draw.choices(words, weights, k=max(3, characters // 6))) for _ in range(number)]
