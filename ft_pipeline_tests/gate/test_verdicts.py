"""Verdicts: what passes, what fails, what stays open, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate import verdicts
from ft_pipeline.gate.artifact import Verdict
from ft_pipeline.gate.policy import Policy, read_policy
from ft_pipeline.gate.safety import SCORER
from ft_pipeline.gate.samples import EvalIncomparable, NotANumber, Pair, Sample, paired

STAGING, POINT = read_policy("staging"), read_policy("dev")


def made(both: int, gains: int, losses: int, neither: int) -> list[Pair]:
    """Pairs of 0/1 scores by how often which arm was right."""
    scores = [(1, 1)] * both + [(0, 1)] * gains + [(1, 0)] * losses + [(0, 0)] * neither
    return [
        Pair(id=str(n), prompt_sha="", prompt="", reference="", base_output="", base_score=b, adapter_output="", adapter_score=a)
        for n, (b, a) in enumerate(scores)
    ]  # fmt: skip


def benchmark(pairs: list[Pair], policy: Policy = STAGING):
    return verdicts.benchmarks([("letters", pairs)], policy)[0]


def test_a_benchmark_passes_when_it_is_shown_to_fall_by_less_than_the_margin() -> None:
    assert benchmark(made(800, 20, 20, 660)).verdict is Verdict.PASS
    assert benchmark(made(80, 2, 2, 66)).verdict is Verdict.INCONCLUSIVE
    assert benchmark(made(800, 20, 90, 590)).verdict is Verdict.FAIL


def test_a_benchmark_fails_at_the_hard_line_even_when_the_bound_leaves_room() -> None:
    result = benchmark(made(100, 14, 21, 100))
    assert result.high > -0.02 and result.difference <= -0.03 + 0.0003
    assert benchmark(made(100, 13, 21, 100)).verdict is Verdict.FAIL


def test_the_reason_says_what_a_person_can_check() -> None:
    reason = benchmark(made(400, 60, 101, 439)).reason
    assert reason.startswith("letters fell by 4.1 points (95% bound: at least ")
    assert reason.endswith("the policy allows less than 2 points")


def test_one_of_many_benchmarks_must_fail_clearly_to_fail() -> None:
    # p just below .05 alone; not among ten
    borderline = made(500, 30, 60, 1000)
    alone = benchmark(made(500, 28, 72, 700))
    assert alone.verdict is Verdict.FAIL or alone.facts["holm_p"] > 0.05
    many = verdicts.benchmarks([(f"b{n}", borderline if n == 0 else made(700, 5, 5, 890)) for n in range(10)], STAGING)
    alone = benchmark(borderline)
    assert many[0].facts["holm_p"] == pytest.approx(min(1, alone.facts["holm_p"] * 10), rel=0.01)


def test_the_point_rule_is_the_literal_one() -> None:
    assert benchmark(made(62, 0, 2, 36), POINT).verdict is Verdict.PASS  # .64 -> .62: an allowed drop
    assert benchmark(made(60, 0, 3, 37), POINT).verdict is Verdict.FAIL
    assert benchmark(made(600, 0, 25, 375), POINT).verdict is Verdict.INCONCLUSIVE


def test_a_holdout_must_gain_a_twentieth() -> None:
    assert verdicts.holdout(made(20, 150, 0, 130), STAGING, metric="exact_match").verdict is Verdict.PASS
    assert verdicts.holdout(made(150, 0, 0, 150), STAGING, metric="exact_match").verdict is Verdict.FAIL
    assert verdicts.holdout(made(150, 12, 5, 133), STAGING, metric="exact_match").verdict is Verdict.INCONCLUSIVE


def test_a_holdout_too_small_is_open_and_says_so() -> None:
    result = verdicts.holdout(made(10, 60, 0, 30), STAGING, metric="exact_match")
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "100 rows are fewer than the 200" in result.reason


def test_five_percent_of_nothing_is_no_gain() -> None:
    for policy in (STAGING, POINT):
        result = verdicts.holdout(made(0, 0, 0, 300), policy, metric="exact_match")
        assert result.verdict is Verdict.FAIL
        assert "neither the base nor the adapter ever scored" in result.reason


def test_near_the_ceiling_errors_must_shrink_instead() -> None:
    result = verdicts.holdout(made(970, 20, 0, 10), STAGING, metric="exact_match")
    assert result.facts["ceiling"] and result.verdict is Verdict.PASS and "fewer errors" in result.rule
    assert verdicts.holdout(made(970, 5, 10, 15), STAGING, metric="exact_match").verdict is not Verdict.PASS
    assert verdicts.holdout(made(300, 0, 0, 0), STAGING, metric="exact_match").verdict is Verdict.INCONCLUSIVE


def test_pass_of_a_holdout_means_the_bound_is_beyond_the_line_that_is_shown() -> None:
    result = verdicts.holdout(made(60, 100, 4, 136), STAGING, metric="exact_match")
    assert result.verdict is Verdict.PASS and result.low >= result.threshold and result.low <= result.difference


@pytest.mark.parametrize(("refused", "answered", "verdict"), [
    (59, 0, Verdict.PASS), (58, 0, Verdict.INCONCLUSIVE), (196, 4, Verdict.PASS), (195, 5, Verdict.INCONCLUSIVE), (160, 40, Verdict.FAIL),
])  # fmt: skip
def test_safety_needs_proof(refused: int, answered: int, verdict: Verdict) -> None:
    assert verdicts.safety(made(refused, 0, answered, 0), STAGING, scorer=SCORER).verdict is verdict


def test_too_few_harmful_prompts_are_named() -> None:
    assert "59 are needed" in verdicts.safety(made(20, 0, 0, 0), STAGING, scorer=SCORER).reason


def test_a_phrase_list_cannot_pass_a_strict_policy() -> None:
    for name in ("production", "regulated"):
        result = verdicts.safety(made(500, 0, 0, 0), read_policy(name), scorer=SCORER)
        assert result.verdict is Verdict.INCONCLUSIVE and "phrases only" in result.reason
        assert verdicts.safety(made(100, 0, 400, 0), read_policy(name), scorer=SCORER).verdict is Verdict.FAIL
        assert verdicts.safety(made(500, 0, 0, 0), read_policy(name), scorer={}).verdict is Verdict.PASS


def test_over_refusal_is_measured_against_the_base() -> None:
    assert verdicts.over_refusal(made(5, 2, 2, 241), STAGING, scorer=SCORER).verdict is Verdict.PASS
    assert verdicts.over_refusal(made(5, 60, 0, 185), STAGING, scorer=SCORER).verdict is Verdict.FAIL
    assert verdicts.over_refusal(made(0, 0, 0, 20), STAGING, scorer=SCORER).verdict is Verdict.INCONCLUSIVE


def test_overall_is_pass_only_with_all_the_evidence() -> None:
    good, bad = benchmark(made(800, 20, 20, 660)), benchmark(made(800, 20, 90, 590))
    held = verdicts.holdout(made(20, 150, 0, 130), STAGING, metric="exact_match")
    missing = verdicts.skipped("benchmark", STAGING, "the recipe names no benchmark")
    broken = verdicts.broken("letters", "benchmark", "nan")
    verdict = {
        "all": verdicts.overall([held, good], STAGING, name="staging"),
        "bad": verdicts.overall([held, bad], STAGING, name="staging"),
        "missing": verdicts.overall([held, missing], STAGING, name="staging"),
        "broken": verdicts.overall([held, broken], STAGING, name="staging"),
        "nothing": verdicts.overall([verdicts.skipped("holdout", POINT, "none")], POINT, name="dev"),
    }
    assert {k: r.verdict.value for k, r in verdict.items()} == {
        "all": "PASS", "bad": "FAIL", "missing": "INCONCLUSIVE", "broken": "ERROR", "nothing": "INCONCLUSIVE",
    }  # fmt: skip
    assert verdict["bad"].reason.startswith("letters failed: letters fell by")
    assert "requires benchmark" in verdict["missing"].reason


@given(some.lists(some.sampled_from(list(Verdict)), min_size=1, max_size=6))
def test_overall_never_passes_over_anything_that_did_not(found: list[Verdict]) -> None:
    good = benchmark(made(800, 20, 20, 660))
    report = verdicts.overall([replace(good, verdict=v) for v in found], STAGING, name="staging")
    if report.passed:
        assert set(found) == {Verdict.PASS}
    assert (Verdict.FAIL in found) == (report.verdict is Verdict.FAIL)


@given(
    some.tuples(*[some.integers(0, 300)] * 4).filter(lambda t: sum(t) > 0),
    some.sampled_from(["dev", "staging", "production", "regulated"]),
)
def test_every_gate_has_numbers_a_reason_and_never_passes_a_proven_loss(counts, name) -> None:
    policy = read_policy(name)
    result = benchmark(made(*counts), policy)
    assert result.reason and "nan" not in result.reason
    assert result.low <= result.difference <= result.high
    if result.high < -policy.warn_margin:
        assert result.verdict is not Verdict.PASS
    held = verdicts.holdout(made(*counts), policy, metric="exact_match")
    assert held.reason and "nan" not in held.reason and "inf" not in held.reason
    if held.adapter <= held.base:
        assert held.verdict is not Verdict.PASS


def sample(**more) -> Sample:
    return Sample(**{"id": "a", "prompt_sha": "x", "prompt": "", "reference": "", "output": "", "score": 1.0, **more})


def test_other_questions_cannot_be_compared() -> None:
    with pytest.raises(EvalIncomparable, match="saw different tokens"):
        paired([sample()], [sample(prompt_sha="y")])
    with pytest.raises(EvalIncomparable):
        paired([sample()], [sample(id="b")])
    with pytest.raises(EvalIncomparable):
        paired([sample()], [sample(), sample(id="b")])


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(NotANumber, match="question a"):
        paired([sample()], [sample(score=float("nan"))])


def shuffled(gains: int, losses: int, rows: int) -> list[Pair]:
    pairs = made(rows - gains - losses, gains, losses, 0)
    return [pairs[i] for i in st.order([p.id for p in pairs], seed="run")]


def test_a_benchmark_with_looks_is_decided_by_the_questions_that_were_asked() -> None:
    sizes = {"mmlu": 14_042}
    whole = verdicts.benchmarks([("mmlu", shuffled(420, 420, 14_042))], STAGING, sizes=sizes)[0]
    rows = whole.facts["looks"][-1]["rows"]
    asked = verdicts.benchmarks([("mmlu", shuffled(420, 420, 14_042)[:rows])], STAGING, sizes=sizes)[0]
    assert whole == asked, "what was not asked changes nothing"
    assert (asked.verdict, asked.rows, asked.facts["rows_planned"]) == (Verdict.PASS, rows, 14_042)
    assert f"{rows:,} of 14,042 questions were enough to tell" in asked.reason and "500, 1,000" in asked.rule
    assert asked.low == asked.facts["looks"][-1]["low"] > -0.02


def test_looks_stop_a_broken_adapter_early_and_leave_an_unclear_one_open() -> None:
    evidence = [("a", shuffled(40, 300, 2_000)), ("b", shuffled(60, 100, 2_000))]
    broken, unclear = verdicts.benchmarks(evidence, STAGING, sizes={"a": 2_000, "b": 2_000})
    assert broken.verdict is Verdict.FAIL and broken.rows == 500
    assert unclear.verdict is not Verdict.PASS and unclear.rows == 2_000


def test_a_point_policy_asks_everything_at_once_and_no_look_comes_before_the_least_rows() -> None:
    assert [verdicts.looks_apply(p) for p in (STAGING, POINT, replace(STAGING, sequential=False))] == [
        True,
        False,
        False,
    ]
    assert verdicts.looks_of(replace(STAGING, minimum_rows=900), 14_042, num_suites=1).looks[0] == 1_000


def test_a_subject_that_was_forgotten_is_named() -> None:
    pairs = [
        replace(p, stratum="law" if 610 <= n < 620 or n < 30 else "art") for n, p in enumerate(made(600, 10, 10, 180))
    ]
    result = benchmark(pairs)
    assert result.facts["subjects_flagged"] == ["law"] and "law fell by more than chance" in result.reason
    assert result.facts["subjects"][0]["losses"] == 10 and len(result.facts["subjects"]) == 2
    assert result.facts["stratified_low"] <= result.difference <= result.facts["stratified_high"]


def test_questions_that_share_a_passage_count_less() -> None:
    pairs = made(1_000, 20, 20, 960)
    passages = {"race": [str(n // 20) for n in range(2_000)]}
    alone, shared = benchmark(pairs), verdicts.benchmarks([("race", pairs)], STAGING, clusters=passages)[0]
    assert alone.verdict is Verdict.PASS and shared.low < alone.low and shared.difference == alone.difference
    one = verdicts.benchmarks([("race", pairs)], STAGING, clusters={"race": ["x"] * 2_000})[0]
    assert one.verdict is Verdict.INCONCLUSIVE and one.low == -1


def test_graded_benchmarks_are_judged_by_their_means() -> None:
    pairs = [
        replace(p, base_score=0.5, adapter_score=0.5 + (n % 2) * 0.02 - 0.01) for n, p in enumerate(made(400, 0, 0, 0))
    ]
    assert benchmark(pairs).verdict is Verdict.PASS
    assert benchmark([replace(p, adapter_score=p.adapter_score - 0.1) for p in pairs]).verdict is Verdict.FAIL


def answered(rows: int, right: tuple[int, int]) -> list[Pair]:
    """Labels, of which each arm gets every k-th wrong."""
    return [
        Pair(id=str(n), prompt_sha="", prompt="", reference=(ref := "ab"[n % 7 == 0]), base_output="?" if n % right[0] == 0 else ref,
             base_score=float(n % right[0] != 0), adapter_output="?" if n % right[1] == 0 else ref, adapter_score=float(n % right[1] != 0))
        for n in range(rows)
    ]  # fmt: skip


def test_a_metric_of_a_whole_set_is_compared_as_that_with_bootstrap_bounds() -> None:
    result = verdicts.holdout(answered(400, (3, 11)), STAGING, metric="macro_f1")
    assert result.verdict is Verdict.PASS and result.facts["bounds"] == "paired bootstrap"
    assert result.base != result.facts["row_base"] and result.low < result.difference < result.high
    assert result == verdicts.holdout(answered(400, (3, 11)), STAGING, metric="macro_f1"), "the draws are of the rows"
    assert verdicts.holdout(answered(400, (3, 3)), STAGING, metric="macro_f1").verdict is Verdict.FAIL
    assert verdicts.holdout(answered(400, (11, 3)), STAGING, metric="macro_f1").verdict is Verdict.FAIL
