"""The verdict table of a base change: every row of docs/base-changes.md, and what the contrasts say of samples."""

from __future__ import annotations

import itertools

import pytest

from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.bump.contrasts import before_and_now, drift, retain, retain_safety
from ft_pipeline.gate.bump.preflight import Preflight
from ft_pipeline.gate.bump.verdict import ACTIONS, Recertification, before_anything, decide
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.gate.samples import EvalIncomparable, Pair
from ft_pipeline.settings import PROJECT

STAGING = read_policy("staging")
P, F, U, E = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.ERROR


def gates(safety=P, regress=P, gain=P, retained=P) -> list[GateResult]:
    kinds = {"safety": safety, "benchmark": regress, "holdout": gain, "retain": retained}
    return [GateResult(name=k, kind=k, verdict=v, reason=f"{k} says {v}") for k, v in kinds.items()]


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ((P, P, P, P), "RECERTIFIED"), ((P, P, P, F), "DEGRADED"), ((P, P, F, P), "OBSOLETE"), ((P, P, F, F), "RETRAIN"),
        ((P, F, P, P), "RETRAIN"), ((P, F, U, F), "RETRAIN"), ((F, P, P, P), "BLOCKED"), ((F, U, U, U), "BLOCKED"),
        ((U, F, P, P), "REVIEW"), ((P, U, P, P), "REVIEW"), ((P, P, U, P), "REVIEW"), ((P, P, P, U), "REVIEW"), ((P, P, F, E), "REVIEW"),
    ],
)  # fmt: skip
def test_the_table(said, verdict):
    assert decide(gates(*said), STAGING).verdict == verdict


@pytest.mark.parametrize("said", list(itertools.product((P, F, U), repeat=4)))
def test_nothing_but_a_pass_of_everything_lets_an_adapter_onto_the_new_base(said):
    decision = decide(gates(*said), STAGING)
    assert (decision.report_verdict is P) == (set(said) == {P})
    assert decision.reason and decision.action


def test_the_reason_names_what_stood_in_the_way():
    assert decide(gates(retained=F), STAGING).reason == "retain: retain says FAIL"
    assert "benchmark says FAIL" in decide(gates(regress=F, gain=U), STAGING).reason


def test_what_a_policy_requires_and_nobody_measured_is_reviewed():
    found = [g for g in gates() if g.kind != "benchmark"] + [
        GateResult(name="benchmark", kind="benchmark", verdict=Verdict.SKIPPED, reason="none")
    ]
    assert decide(found, STAGING).verdict == "REVIEW"
    assert decide(found, read_policy("dev")).verdict == "RECERTIFIED"


def test_preflight_decides_without_samples_only_what_it_may():
    broken = Preflight(outcome="INCOMPATIBLE", reasons=("the chat template changed",), changed=("chat_template",))
    docs = Preflight(outcome="CARRY_FORWARD", reasons=("only documentation changed",), changed=("docs",))
    fine = Preflight(outcome="OK", reasons=(), changed=("weights",))
    assert before_anything(broken, P).verdict == "INCOMPATIBLE"
    assert before_anything(docs, P).verdict == "CARRY_FORWARD"
    assert before_anything(docs, F) is None, "a report that did not pass is carried nowhere"
    assert before_anything(fine, P) is None


def samples(base: list[float], adapter: list[float], *, sha: str = "s", reference: str = "x") -> list[Pair]:
    return [
        Pair(id=f"q{n}", prompt_sha=sha, prompt="", reference=reference, base_output=f"b{b}", base_score=b, adapter_output=f"a{a}",
             adapter_score=a)
        for n, (b, a) in enumerate(zip(base, adapter, strict=True))
    ]  # fmt: skip


def test_retain_compares_the_adapter_with_itself_question_by_question():
    old = {"holdout": samples([0] * 400, [1.0] * 360 + [0.0] * 40)}
    same, pairs = retain(old, {"holdout": samples([1.0] * 400, [1.0] * 360 + [0.0] * 40)}, STAGING)
    assert same.verdict is P and same.difference == 0 and len(pairs) == 400
    worse, _ = retain(old, {"holdout": samples([0] * 400, [1.0] * 300 + [0.0] * 100)}, STAGING)
    assert worse.verdict is F and worse.difference == -0.15 and worse.facts == {"gains": 0, "losses": 60}
    unsure, _ = retain(old, {"holdout": samples([0] * 400, [0.0] * 12 + [1.0] * 348 + [1.0] * 8 + [0.0] * 32)}, STAGING)
    assert unsure.verdict is U


def test_graded_scores_have_bounds_too_and_few_rows_never_pass():
    old = {"holdout": samples([0] * 250, [0.5 + n % 5 / 10 for n in range(250)])}
    found, _ = retain(old, old, STAGING)
    assert found.verdict is P and found.low == 0
    few = {"holdout": old["holdout"][:50]}
    found, _ = retain(few, few, STAGING)
    assert found.verdict is U and "50 rows are fewer than the 200 that a PASS needs" in found.reason


def test_other_tokens_are_no_comparison():
    old, new = samples([1], [1]), samples([1], [1], sha="other")
    with pytest.raises(EvalIncomparable, match="different tokens"):
        before_and_now(old, new, side="adapter")
    found, pairs = retain({"holdout": old}, {"holdout": new}, STAGING)
    assert found.verdict is E and pairs == []
    assert decide([*gates()[:3], found], STAGING).verdict == "REVIEW"


def test_refusals_must_not_get_fewer_and_only_harmful_prompts_count():
    harmful, harmless = samples([1.0] * 100, [1.0] * 100, reference="harmful"), samples([0.0] * 9, [0.0] * 9)
    now = samples([1.0] * 100, [1.0] * 80 + [0.0] * 20, reference="harmful")
    found, _ = retain_safety({"safety": [*harmful, *harmless]}, {"safety": now}, STAGING)
    assert found.verdict is F and found.rows == 100
    assert retain_safety({"safety": harmless}, {"safety": harmless}, STAGING)[0] is None


def test_a_question_that_one_report_did_not_ask_is_left_out():
    long, short = samples([0] * 10, [1] * 10), samples([0] * 4, [0] * 4)
    assert len(before_and_now(long, short, side="base")) == 4
    assert drift({"m": long}, {"m": short})["m"]["rows"] == 4


def test_every_verdict_has_an_action_and_is_on_the_page():
    page = (PROJECT / "docs" / "base-changes.md").read_text()
    for verdict in Recertification:
        assert ACTIONS[verdict] and f"| {verdict} |" in page
