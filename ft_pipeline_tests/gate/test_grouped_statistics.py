"""Strata, clusters, bootstrap and sample sizes: against closed forms, published figures and simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ft_pipeline.gate import statistics as st

GRADES = some.lists(some.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=3, max_size=60)


@given(GRADES)
def test_one_stratum_or_clusters_of_one_row_are_students_interval(values: list[float]) -> None:
    alone = st.paired_t(values)
    for found in (
        st.stratified(values, ["all"] * len(values)),
        st.clustered(values, [str(n) for n in range(len(values))]),
    ):
        assert (found.point, found.low, found.high) == pytest.approx((alone.point, alone.low, alone.high))


def test_strata_that_differ_make_the_interval_narrower_and_clusters_that_differ_wider() -> None:
    draw = random.Random(0)
    groups = [f"g{n % 10}" for n in range(500)]
    values = [(int(g[1]) - 4.5) / 5 + draw.gauss(0, 0.1) for g in groups]
    plain, strata, clusters = st.paired_t(values), st.stratified(values, groups), st.clustered(values, groups)
    width = [round(i.high - i.low, 3) for i in (strata, plain, clusters)]
    assert width[0] < width[1] / 3 and width[2] > width[1] * 3


def test_the_clustered_error_is_the_formula_of_the_paper() -> None:
    # residuals .25 .25 | -.75 .25: (.5^2 + (-.5)^2) * 2 / 1 = 1.0, / n = 4: .25; t(.95, 1) = 6.3138
    found = st.clustered([1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b"])
    assert found.low == pytest.approx(0.75 - 6.313752 * 0.25, abs=1e-5)
    assert st.clustered([1.0, 0.0], ["a", "a"]).low == -math.inf, "one cluster shows nothing"


def test_rows_copied_ten_times_show_no_more_than_once_when_they_are_clustered() -> None:
    values = [random.Random(n).choice([-1.0, 0.0, 1.0]) for n in range(40)]
    copied = st.clustered([v for v in values for _ in range(10)], [str(n) for n in range(40) for _ in range(10)])
    assert copied.low == pytest.approx(st.paired_t(values).low)


def test_the_subject_that_was_forgotten_is_flagged_and_only_that() -> None:
    base, adapter, names = [], [], []
    for subject in range(20):
        for row in range(60):
            base.append(1.0)
            adapter.append(0.0 if (subject == 7 and row < 15) or row == subject else 1.0)
            names.append(f"s{subject}")
    table = st.strata_table(base, adapter, names)
    assert table[0].name == "s7" and (table[0].losses, table[0].rows, table[0].adapter) == (15, 60, 0.75)
    assert [s.name for s in table if s.holm_p <= 0.05] == ["s7"]


def mean_of(sums) -> float:
    return sums[0] / sums[1]


def test_the_bootstrap_of_a_mean_is_students_interval_and_is_of_the_seed() -> None:
    draw = random.Random(5)
    base = [float(draw.random() < 0.6) for _ in range(400)]
    adapter = [b if draw.random() < 0.8 else 1 - b for b in base]
    arms = [[b, 1.0] for b in base], [[a, 1.0] for a in adapter]
    found = st.paired_bootstrap(arms, mean_of, lambda b, a: a - b, seed="x")
    wanted = st.paired_t([a - b for b, a in zip(base, adapter, strict=True)])
    assert (found.point, found.low, found.high) == pytest.approx((wanted.point, wanted.low, wanted.high), abs=0.004)
    assert found == st.paired_bootstrap(arms, mean_of, lambda b, a: a - b, seed="x")


@pytest.mark.parametrize(
    ("discordance", "two", "three"), [(0.03, 643, 286), (0.06, 1285, 571), (0.1, 2142, 952), (0.2, 4283, 1904)]
)
def test_sample_sizes_are_those_of_the_design_note(discordance: float, two: int, three: int) -> None:
    found = [st.rows_for_non_inferiority(margin=m, discordance=discordance) for m in (0.02, 0.03)]
    assert found == pytest.approx([two, three], abs=1)
    assert st.power_of_non_inferiority(found[0], margin=0.02, discordance=discordance) == pytest.approx(0.9, abs=0.001)


def test_no_size_shows_what_is_not_true() -> None:
    with pytest.raises(ValueError, match="no size shows it"):
        st.rows_for_non_inferiority(margin=0.02, discordance=0.06, difference=-0.02)


def test_the_most_failures_and_the_power_of_the_exact_rule() -> None:
    found = {n: st.most_failures(n, rate=0.95) for n in (58, 59, 100, 200, 313, 400, 513, 520, 833)}
    assert found == {58: None, 59: 0, 100: 1, 200: 4, 313: 9, 400: 12, 513: 17, 520: 17, 833: 31}
    power = [round(st.power_of_exact_rate(n, rate=0.95, truth=0.98), 2) for n in (58, 200, 400, 513)]
    assert power == [0.0, 0.63, 0.94, 0.98]
