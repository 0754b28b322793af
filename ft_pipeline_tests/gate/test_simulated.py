"""The error that a policy promises, by simulation at every rule's margin, and what must hold for any sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate import verdicts
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.gate.samples import Pair
from ft_pipeline_tests import simulate_gates as sim

pytestmark = pytest.mark.slow

STAGING = read_policy("staging")
RANK = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
SLOW = {"holdout of macro-F1, 300 rows": 60, "three benchmarks with looks, all at the margin": 250}
COUNTS = some.tuples(*[some.integers(0, 200)] * 4).filter(lambda c: sum(c) >= 200)


@pytest.mark.parametrize("rule", sim.AT_THE_MARGIN)
def test_at_its_margin_a_rule_passes_at_most_one_of_twenty(rule: str) -> None:
    found = sim.simulate(sim.AT_THE_MARGIN[rule], trials=SLOW.get(rule, 500), seed=1)
    assert found.passed <= 0.05 + found.error


def test_a_point_rule_passes_many_that_are_three_points_worse_and_bounds_do_not() -> None:
    literal = sim.simulate(sim.benchmark(200, -0.03, discordance=0.12, policy=sim.SPEC), trials=400)
    bounds = sim.simulate(sim.benchmark(200, -0.03, discordance=0.12), trials=400)
    assert literal.passed > 0.25 and bounds.passed < 0.05


def test_looks_ask_a_fraction_of_a_large_suite_and_keep_the_power() -> None:
    found = sim.simulate(sim.benchmark(14_042, 0.0, policy=STAGING), trials=40)
    assert found.passed == 1 and found.questions < 2_000


def swapped(pairs: list[Pair]) -> list[Pair]:
    return [replace(p, base_score=p.adapter_score, adapter_score=p.base_score) for p in pairs]


@settings(max_examples=60)
@given(COUNTS)
def test_swapping_the_arms_mirrors_the_bounds(counts) -> None:
    pairs = sim._counted(counts)
    one, other = (verdicts.benchmarks([("b", p)], STAGING)[0] for p in (pairs, swapped(pairs)))
    assert (one.low, one.high, one.difference) == pytest.approx((-other.high, -other.low, -other.difference), abs=2e-6)
    refused = verdicts.over_refusal(swapped(pairs), STAGING, scorer={})
    assert (refused.low, refused.high) == pytest.approx((-one.high, -one.low), abs=2e-6)
    assert not one.verdict == other.verdict == "FAIL", "both arms cannot have lost"


@settings(max_examples=60)
@given(COUNTS)
def test_a_holdout_is_never_won_by_both_arms(counts) -> None:
    pairs = sim._counted(counts)
    one, other = (verdicts.holdout(p, STAGING, metric="exact_match").verdict for p in (pairs, swapped(pairs)))
    assert not one == other == "PASS"


@settings(max_examples=60)
@given(COUNTS, some.integers(1, 5))
def test_more_losses_never_help_any_rule(counts, more: int) -> None:
    both, gains, losses, neither = counts
    lost = min(more, both)
    before, after = sim._counted(counts), sim._counted((both - lost, gains, losses + lost, neither))
    for rule in (
        lambda p: verdicts.benchmarks([("b", p)], STAGING)[0],
        lambda p: verdicts.holdout(p, STAGING, metric="exact_match"),
        lambda p: verdicts.safety(p, STAGING, scorer={}),
    ):
        assert RANK[rule(after).verdict] <= RANK[rule(before).verdict]


@settings(max_examples=40)
@given(some.lists(some.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=80))
def test_a_judge_who_sees_the_arms_swapped_says_the_opposite(values: list[float]) -> None:
    one, other = st.paired_t(values), st.paired_t([1 - v for v in values])
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))


def test_a_judge_who_always_says_a_looks_fair_without_the_consistency_rule() -> None:
    found = st.paired_t([0.5] * 200)
    assert found.low > STAGING.judge_threshold, "so the policy also asks for consistency"
    assert STAGING.judge_consistency >= 0.6
