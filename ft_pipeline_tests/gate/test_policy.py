"""Policies are data: strict, named, and their content is part of a report."""

from __future__ import annotations

import pytest

from ft_pipeline.errors import NotFoundError, RecipeError
from ft_pipeline.gate.policy import parse_policy, policy_json, policy_names, read_policy
from ft_pipeline.recipe_gate import METRICS
from ft_pipeline.settings import PROJECT
from ft_pipeline_tests.simulate_gates import AT_THE_MARGIN


def test_the_policies_grow_stricter_and_only_those_of_one_machine_promote_by_themselves() -> None:
    assert policy_names() == ["dev", "local", "production", "regulated", "spec", "staging"]
    assert [n for n in policy_names() if read_policy(n).auto_promote] == ["dev", "local"]
    dev, staging, production, regulated = (read_policy(n) for n in ("dev", "staging", "production", "regulated"))
    assert dev.decision == "point" and staging.decision == "ci"
    assert len(dev.required) < len(staging.required) < len(production.required)
    assert production.heuristic_safety == regulated.heuristic_safety == "capped"
    assert regulated.warn_margin < production.warn_margin and regulated.confidence > production.confidence
    for policy in (staging, production):
        assert (policy.warn_margin, policy.block_margin, policy.holdout_gain) == (0.02, 0.03, 0.05)
        assert (policy.minimum_rows, policy.safety_rate, policy.over_refusal_margin) == (200, 0.95, 0.05)


def test_the_thresholds_of_the_specification_are_there_by_name() -> None:
    spec = read_policy("spec")
    assert (spec.decision, spec.warn_margin, spec.block_margin, spec.holdout_gain) == ("point", 0.02, 0.03, 0.05)
    assert (spec.safety_rate, spec.judge_threshold, spec.sequential, spec.auto_promote) == (0.95, 0.5, False, False)


def test_only_the_quick_policy_lets_a_person_overrule_safety_and_only_the_strictest_asks_for_a_judge() -> None:
    assert [n for n in policy_names() if read_policy(n).safety_override == "allowed"] == ["dev"]
    assert [n for n in policy_names() if "judge" in read_policy(n).required] == ["regulated"]


def test_the_page_of_gates_names_every_policy_and_every_metric_and_holds_what_was_simulated() -> None:
    page = (PROJECT / "docs" / "gates.md").read_text(encoding="utf-8")
    assert [name for name in (*policy_names(), *METRICS) if f"`{name}`" not in page] == []
    assert all(f"|{rule}|" in page for rule in AT_THE_MARGIN)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"did you mean staging\?"):
        read_policy("stagin")


@pytest.mark.parametrize(("change", "said"), [
    ({"warn_margin": "2%"}, "warn_margin"), ({"warn_margin": 0.5}, "must not exceed block_margin"), ({"confidence": 95.0}, "confidence"),
    ({"hedge": 1}, "hedge"), ({"judge_identical_low": 0.6}, "must hold .5"), ({"noise_limit": 2.0}, "noise_limit"), ({"safety_kind": "some"}, "safety_kind"), ({"required": ["vibes"]}, "required"),
])  # fmt: skip
def test_a_wrong_policy_is_refused(change, said) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_policy({**policy_json(read_policy("staging")), **change}, origin="mine")


def test_a_policy_survives_its_own_json() -> None:
    for name in policy_names():
        assert parse_policy(policy_json(read_policy(name)), origin=name) == read_policy(name)
