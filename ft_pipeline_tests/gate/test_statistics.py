"""Intervals against published values and against simulation; what must hold for every sample."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.statistics import Pairs


@some.composite
def pairs(draw) -> Pairs:
    rows = draw(some.integers(1, 2000))
    gains = draw(some.integers(0, rows))
    return Pairs(rows=rows, gains=gains, losses=draw(some.integers(0, rows - gains)))


def test_tango_is_the_published_interval() -> None:
    # Bentur et al. 2009 in Fagerland, Lydersen and Laake 2014 (Stat Med 33:2850), two-sided 95%: -0.517 to -0.026
    found = st.tango(Pairs(rows=21, gains=1, losses=7), 0.975)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)


def test_tango_is_the_interval_of_the_design_note() -> None:
    found = st.tango(Pairs(rows=1000, gains=64, losses=77))
    assert (round(found.low, 4), round(found.high, 4)) == (-0.0327, 0.0066)
    assert round(st.mcnemar(Pairs(rows=1000, gains=64, losses=77)), 2) == 0.31


@given(pairs(), some.sampled_from([0.9, 0.95, 0.99]))
def test_tango_holds_the_point_lies_in_range_and_mirrors_when_arms_are_swapped(
    sample: Pairs, confidence: float
) -> None:
    found, mirrored = st.tango(sample, confidence), st.tango(sample.swapped, confidence)
    assert -1 <= found.low <= found.point + 1e-9 and found.point - 1e-9 <= found.high <= 1
    assert math.isclose(found.low, -mirrored.high, abs_tol=1e-9)
    assert math.isclose(found.high, -mirrored.low, abs_tol=1e-9)


@given(pairs())
def test_a_bound_and_its_p_value_agree(sample: Pairs) -> None:
    high = st.tango(sample, 0.95).high
    margin = 0.02
    if abs(high + margin) > 1e-6:
        assert (st.p_value_below(sample, margin) < 0.05) == (high < -margin)


@pytest.mark.parametrize(("rows", "discordance"), [(400, 0.06), (1172, 0.03)])
def test_an_adapter_at_the_margin_passes_in_at_most_one_of_twenty(rows: int, discordance: float) -> None:
    picked = random.Random(3)
    losing = (discordance + 0.02) / 2
    shares, trials = [losing, losing - 0.02], 1500
    passed = 0
    for _ in range(trials):
        losses = gains = 0
        for _ in range(picked_binomial(picked, rows, sum(shares))):
            if picked.random() < shares[0] / sum(shares):
                losses += 1
            else:
                gains += 1
        passed += st.tango(Pairs(rows=rows, gains=gains, losses=losses)).low > -0.02
    assert 0.02 < passed / trials < 0.065


def picked_binomial(picked: random.Random, rows: int, share: float) -> int:
    """A binomial number by its normal limit."""
    return max(0, round(picked.gauss(rows * share, math.sqrt(rows * share * (1 - share)))))


@pytest.mark.parametrize(("failures", "rows"), [(0, 59), (1, 100), (4, 200), (9, 313), (12, 400), (17, 513), (31, 833)])
def test_the_most_failures_that_still_show_95_percent(failures: int, rows: int) -> None:
    assert st.clopper_pearson(rows - failures, rows).low >= 0.95
    assert st.clopper_pearson(rows - failures - 1, rows).low < 0.95


@given(some.integers(1, 400).flatmap(lambda n: some.tuples(some.integers(0, n), some.just(n))))
def test_exact_bounds_hold_the_share_and_mirror(sample: tuple[int, int]) -> None:
    found = st.clopper_pearson(*sample)
    assert 0 <= found.low <= found.point <= found.high <= 1
    assert math.isclose(found.low, 1 - st.clopper_pearson(sample[1] - sample[0], sample[1]).high, abs_tol=1e-9)


@given(some.lists(some.floats(-1, 1), min_size=2, max_size=50))
def test_t_holds_the_mean_and_mirrors(values: list[float]) -> None:
    found, mirrored = st.paired_t(values), st.paired_t([-v for v in values])
    assert found.low <= found.point <= found.high
    assert math.isclose(found.low, -mirrored.high, abs_tol=1e-9)


def test_t_is_the_textbook_interval_and_one_row_shows_nothing() -> None:
    # mean 3, standard error sqrt(2.5 / 5), t(.95, 4) = 2.13185
    assert st.paired_t([1, 2, 3, 4, 5]).low == pytest.approx(3 - 2.131847 * math.sqrt(0.5), abs=1e-5)
    assert st.paired_t([1.0]).low == -math.inf


def test_holm_is_the_textbook_step_down() -> None:
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_an_allowed_drop_of_two_points_is_not_more_than_two_points_in_floats() -> None:
    assert 0.64 - 0.62 > 0.02
    assert not st.rounded(0.64 - 0.62) > 0.02
