"""The judge's verdict from a transcript alone: honest judges decide, those that look at places or lengths are found out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.policy import Policy, read_policy
from ft_pipeline.gate.verdicts.judge import interval, judge, length_controlled
from ft_pipeline.judging.duels import Duel, Outcome, control_calls, duel_calls, same_text_rows
from ft_pipeline.judging.scripted import Replay, Scripted
from ft_pipeline.judging.transcripts import Asking, ask_all
from ft_pipeline_tests.judging import judges

STAGING = read_policy("staging")
GOOD, BAD = "the right words here", "some other things now"


@pytest.fixture
def verdict_of(tmp_path):
    """The gate of a judge over duels."""

    def made(function, duels: list[Duel], policy: Policy = STAGING) -> GateResult:
        return judge(rows_of(tmp_path, Scripted(function), duels), policy, who="scripted")

    return made


def rows_of(tmp_path, speaker, duels):
    path = tmp_path / f"{random.random()}.jsonl"
    rows = ask_all([*duel_calls(duels), *control_calls(duels)], Asking(speaker=speaker, path=path))
    return [*rows, *same_text_rows(duels)]


def duels(wins: int, losses: int, ties: int = 0) -> list[Duel]:
    """The challenger wins, loses, ties by what the reference holds. Every prompt has its own words, so that an answer can be spoilt."""
    sides = [(BAD, GOOD)] * wins + [(GOOD, BAD)] * losses + [(GOOD, GOOD + " ")] * ties
    return [
        Duel(
            id=f"p{n}",
            prompt=f"question {n}",
            baseline=f"{a} {a[:4]}{n}",
            challenger=f"{b} {b[:4]}{n}",
            reference=f"{GOOD} {GOOD[:4]}{n}",
        )
        for n, (a, b) in enumerate(sides)
    ]


def test_an_honest_judge_decides_both_ways_and_says_so(verdict_of) -> None:
    won = verdict_of(judges.prefers_reference, duels(150, 60))
    assert won.verdict is Verdict.PASS and won.adapter == pytest.approx(150 / 210, abs=1e-6)
    assert won.difference == pytest.approx(2 * 150 / 210 - 1, abs=1e-6) and won.threshold == pytest.approx(-0.1)
    assert (
        won.facts["consistency"] == 1.0 and won.facts["identical_first_wins"] == 0.5 and won.facts["spoilt_wins"] == 0.0
    )
    assert "prefers the adapter's answer in 71.4% of 210 comparisons" in won.reason
    lost = verdict_of(judges.prefers_reference, duels(60, 150))
    assert lost.verdict is Verdict.FAIL


def test_few_prompts_or_a_close_race_are_inconclusive(verdict_of) -> None:
    few = verdict_of(judges.prefers_reference, duels(60, 4))
    assert few.verdict is Verdict.INCONCLUSIVE and "64 prompts are fewer than the 200" in few.reason
    assert verdict_of(judges.prefers_reference, duels(96, 114)).verdict is Verdict.INCONCLUSIVE


def test_the_thresholds_of_policies_are_non_inferiority_or_superiority(verdict_of) -> None:
    close = duels(118, 102)
    equal = verdict_of(judges.prefers_reference, close, replace(STAGING, judge_threshold=0.45))
    better = verdict_of(judges.prefers_reference, close, replace(STAGING, judge_threshold=0.5))
    assert equal.verdict is Verdict.PASS and better.verdict is Verdict.INCONCLUSIVE
    assert verdict_of(judges.prefers_reference, duels(3, 3), read_policy("spec")).verdict is Verdict.PASS
    assert verdict_of(judges.prefers_reference, duels(3, 4), read_policy("spec")).verdict is Verdict.FAIL


def test_exchanging_the_arms_mirrors_the_verdict(verdict_of) -> None:
    for wins, losses in ((150, 60), (60, 150), (105, 105)):
        there = verdict_of(judges.prefers_reference, duels(wins, losses), replace(STAGING, judge_threshold=0.5))
        swapped = [replace(d, baseline=d.challenger, challenger=d.baseline) for d in duels(wins, losses)]
        back = verdict_of(judges.prefers_reference, swapped, replace(STAGING, judge_threshold=0.5))
        mirror = {Verdict.PASS: Verdict.FAIL, Verdict.FAIL: Verdict.PASS, Verdict.INCONCLUSIVE: Verdict.INCONCLUSIVE}
        assert back.verdict is mirror[there.verdict]
        assert back.adapter == pytest.approx(there.base) and back.low == pytest.approx(-there.high, abs=2e-6)


def test_a_judge_that_always_says_a_is_found_out(verdict_of) -> None:
    found = verdict_of(judges.always_first, duels(150, 60), replace(STAGING, judge_threshold=0.3))
    assert found.verdict is Verdict.INCONCLUSIVE and found.adapter == 0.5
    assert (
        found.facts["consistency"] == 0.0
        and found.facts["identical_first_wins"] == 1.0
        and found.facts["first_place_wins"] == 1.0
    )
    assert "this judge cannot be believed" in found.reason and "same winner in both orders for 0%" in found.reason


def test_a_judge_that_leans_to_the_first_place_is_found_out(verdict_of) -> None:
    def leaning(*, first: str, second: str, reference: str, **more: str) -> str:
        """Half of the prompts by place, the others honestly."""
        lean = random.Random(reference).random() < 0.55
        return "first" if lean else judges.prefers_reference(first=first, second=second, reference=reference, **more)

    found = verdict_of(leaning, duels(140, 70))
    assert found.verdict is Verdict.INCONCLUSIVE and 0.3 < found.facts["consistency"] < 0.6
    assert found.facts["rate_adapter_first"] - found.facts["rate_base_first"] > 0.4


def test_a_judge_that_cannot_tell_a_spoilt_answer_is_found_out(verdict_of) -> None:
    found = verdict_of(judges.prefers_longer, [replace(d, reference="") for d in duels(150, 60)])
    assert found.verdict is Verdict.INCONCLUSIVE and "answers spoilt on purpose won" in found.reason


def test_length_is_told_apart_from_quality() -> None:
    longer = [
        Outcome(id=str(n), baseline_first=1.0, challenger_first=1.0, characters=(10, 10 + n % 50))
        for n in range(1, 100)
    ]
    shorter = [
        Outcome(id=str(n), baseline_first=0.0, challenger_first=0.0, characters=(10 + n % 50, 10)) for n in range(1, 50)
    ]
    rate, delta = length_controlled([*longer, *shorter])
    assert delta > 5 and rate == pytest.approx(0.5, abs=0.1)  # 67% were won, all by length
    assert length_controlled([replace(o, characters=(5, 5)) for o in longer]) == (1.0, 0.0)


def test_no_spread_is_no_certainty() -> None:
    all_won = interval([1.0] * 10, 0.95)
    assert all_won.low == pytest.approx(0.05 ** (1 / 10), abs=1e-6) and all_won.high == 1.0
    ties = interval([0.5] * 200, 0.95)
    assert ties.low < 0.45 < 0.55 < ties.high


def test_missing_opinions_are_an_error_with_their_counts(verdict_of) -> None:
    def sometimes(*, reference: str, **more: str) -> str:
        return (
            "no idea"
            if random.Random(reference).random() < 0.1
            else judges.prefers_reference(reference=reference, **more)
        )

    found = verdict_of(sometimes, duels(150, 60))
    assert found.verdict is Verdict.ERROR and found.facts["failures"]["unreadable"] > 20
    assert f"({found.facts['failures']['unreadable']} unreadable)" in found.reason and "2%" in found.reason
    assert verdict_of(judges.no_function_at_all, duels(5, 5)).verdict is Verdict.ERROR


def test_a_few_missing_ones_are_left_out_and_counted(verdict_of) -> None:
    def once(*, reference: str, **more: str) -> str:
        return "?" if reference.endswith(" 3") else judges.prefers_reference(reference=reference, **more)

    asked = [replace(d, reference=f"{d.reference} {n}") for n, d in enumerate(duels(170, 60))]
    found = verdict_of(once, asked)
    assert found.verdict is Verdict.PASS and (found.rows, found.facts["missing"]) == (229, 1)
    assert 2 <= found.facts["failures"]["unreadable"] <= 5


def test_a_transcript_alone_gives_the_same_verdict(tmp_path) -> None:
    asked = duels(150, 60, 3)
    rows = rows_of(tmp_path, Scripted(judges.prefers_reference), asked)
    again = rows_of(tmp_path, Replay(rows), asked)
    assert judge(rows, STAGING, who="x") == judge(again, STAGING, who="x")


def test_answers_that_are_one_text_are_ties_without_a_call(verdict_of) -> None:
    same = [replace(d, challenger=d.baseline) for d in duels(100, 110)]
    found = verdict_of(judges.prefers_reference, same)
    assert found.adapter == 0.5 and found.facts["same_text"] == 210 and found.facts["consistency"] is None
    assert found.facts["calls"] == 200
