"""Looks: planned from the size alone, in an order that every prefix represents the whole, and no more false verdicts than one look."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ft_pipeline.gate import statistics as st


def test_the_looks_are_fixed_and_only_those_that_fit() -> None:
    assert st.looks(14_042) == (500, 1_000, 2_000, 4_000, 8_000, 14_042)
    assert st.looks(1_172) == (500, 1_172)
    assert st.looks(313) == (313,)


@pytest.mark.parametrize(("at", "confidence", "critical"), [
    # Jennison and Turnbull 2000, table 2.1 (two-sided alpha = 2 * (1 - confidence), equally spaced looks)
    ((100,), 0.95, 1.645), ((1, 2), 0.95, 1.875), ((1, 2, 3), 0.975, 2.289), ((1, 2, 3, 4, 5), 0.95, 2.122), ((1, 2, 3, 4, 5, 6), 0.975, 2.453),
    # ours double: more of the information lies in the first looks, and c is higher
    ((500, 1_000, 2_000, 4_000, 8_000, 14_042), 0.95, 2.265), ((500, 1_172), 0.95, 1.889),
])  # fmt: skip
def test_the_critical_values_are_those_of_the_books(at, confidence, critical) -> None:
    assert st.pocock(at, confidence) == pytest.approx(critical, abs=0.0011)


def test_the_crossing_probability_is_that_of_a_random_walk() -> None:
    draw, at, critical, crossed, runs = random.Random(0), (500, 1_000, 2_000), 1.7, 0, 20_000
    for _ in range(runs):
        position, before, hit = 0.0, 0, False
        for rows in at:
            position += draw.gauss(0, (rows - before) ** 0.5)
            before, hit = rows, hit or position >= critical * rows**0.5
        crossed += hit
    assert st.crossing_probability(at, critical) == pytest.approx(crossed / runs, abs=0.008)
    assert st.crossing_probability(at, -float("inf")) == 1 and st.crossing_probability(at, float("inf")) == 0


def test_the_order_is_of_the_seed_and_every_prefix_holds_the_strata_in_proportion() -> None:
    ids = [f"q{n}" for n in range(1_000)]
    strata = ["law" if n < 700 else "art" if n < 950 else "war" for n in range(1_000)]
    asked = st.order(ids, strata, "run")
    assert sorted(asked) == list(range(1_000)) and asked == st.order(ids, strata, "run") != st.order(
        ids, strata, "other run"
    )
    for size in (20, 100, 333, 500):
        found = Counter(strata[i] for i in asked[:size])
        assert all(abs(found[s] - share * size) <= 1 for s, share in {"law": 0.7, "art": 0.25, "war": 0.05}.items())
    back = list(reversed(range(1_000)))
    again = st.order([ids[i] for i in back], [strata[i] for i in back], "run")
    assert [back[i] for i in again] == asked, "the order of the file decides nothing"


def scores(gains: int, losses: int, rows: int, seed: int = 0) -> tuple[list[float], list[float]]:
    pairs = [(0.0, 1.0)] * gains + [(1.0, 0.0)] * losses + [(1.0, 1.0)] * (rows - gains - losses)
    random.Random(seed).shuffle(pairs)
    return [b for b, _ in pairs], [a for _, a in pairs]


MMLU = st.plan(14_042, margin=0.02, block_margin=0.03)


def test_a_harmless_adapter_is_passed_early_and_a_broken_one_is_stopped_early() -> None:
    harmless, broken = st.walk(*scores(420, 420, 14_042), MMLU), st.walk(*scores(300, 1_800, 14_042), MMLU)
    assert (harmless[-1].verdict, broken[-1].verdict) == ("PASS", "FAIL")
    assert harmless[-1].rows <= 4_000 and broken[-1].rows <= 1_000
    assert [look.verdict for look in harmless[:-1]] == ["CONTINUE"] * (len(harmless) - 1)
    assert st.sequential_p(broken, MMLU) < 0.05 < st.sequential_p(harmless, MMLU)


def test_near_the_margin_it_asks_everything_and_stays_open() -> None:
    found = st.walk(*scores(420, 700, 14_042), MMLU)
    assert (found[-1].rows, found[-1].verdict) == (14_042, "INCONCLUSIVE") or found[-1].verdict == "FAIL"


def test_at_the_last_look_the_hard_rule_counts_and_before_it_does_not() -> None:
    plan = st.plan(700, margin=0.02, block_margin=0.03)
    assert st.look_verdict(*scores(80, 102, 700), plan).verdict == "FAIL"
    assert st.look_verdict(*scores(60, 76, 500), plan).verdict == "CONTINUE"


def test_a_look_that_was_not_planned_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the planned looks"):
        st.look_verdict([1.0] * 600, [1.0] * 600, MMLU)


def test_a_part_of_the_rows_gives_the_looks_so_far() -> None:
    base, adapter = scores(420, 650, 14_042)
    assert [look.rows for look in st.walk(base[:1_000], adapter[:1_000], MMLU)] == [500, 1_000]


def test_graded_scores_are_looked_at_by_their_mean() -> None:
    draw = random.Random(1)
    base = [draw.random() for _ in range(2_000)]
    plan = st.plan(2_000, margin=0.02, block_margin=0.03)
    same = [b + draw.gauss(0, 0.05) for b in base]
    worse = [b - 0.1 + draw.gauss(0, 0.05) for b in base]
    assert st.walk(base, same, plan)[-1].verdict == "PASS"
    assert st.walk(base, worse, plan)[-1].verdict == "FAIL"


def test_several_suites_make_a_false_fail_no_likelier_and_a_pass_no_dearer() -> None:
    one, three = (
        st.plan(1_172, margin=0.02, block_margin=0.03),
        st.plan(1_172, margin=0.02, block_margin=0.03, num_suites=3),
    )
    assert three.pass_critical == one.pass_critical and three.fail_critical > one.fail_critical


@settings(max_examples=40)
@given(some.integers(0, 60), some.integers(0, 60), some.integers(0, 10))
def test_more_losses_never_help(gains: int, losses: int, more: int) -> None:
    plan = st.plan(500, margin=0.02, block_margin=0.03)
    rank = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
    before, after = (
        st.look_verdict(*scores(gains, losses, 500), plan),
        st.look_verdict(*scores(gains, losses + more, 500), plan),
    )
    assert rank[after.verdict] <= rank[before.verdict] and after.low <= before.low and after.z <= before.z
