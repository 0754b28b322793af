"""Which questions are asked when: fixed blocks of questions, in one round or in looks, the same for every adapter on a base.

A block is what is asked at once and kept at once, so a killed evaluation asks none of them again; it is also a part of the result in low
precision, where the shape of a batch decides the last bits (lm-evaluation-harness#1645, #3055). So it depends on the questions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ft_pipeline.gate import statistics
from ft_pipeline.gate.probes.probe import Probe
from ft_pipeline.gate.statistics import Plan

BLOCK_QUESTIONS = 256
Block = tuple[int, ...]
"""Indices of questions."""


def rounds(probe: Probe, plan: Plan | None, *, seed: str) -> list[list[Block]]:
    """The blocks of each round: one round without a plan, or one for each of its looks.

    `seed` is the suite's digest and not the run's: then all adapters of a base are asked in one order and share its answers.
    """
    if plan is None:
        return [blocks(range(probe.num_questions), probe.strata)]
    order = statistics.order(probe.ids, probe.strata, seed)
    return [blocks(order[start:end], probe.strata) for start, end in pairwise((0, *plan.looks))]


def blocks(indices: Sequence[int], strata: Sequence[str], size: int = BLOCK_QUESTIONS) -> list[Block]:
    """The questions in blocks, those of one stratum together: they share a few-shot prefix."""
    ordered = sorted(indices, key=lambda i: (strata[i], i))
    return [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
