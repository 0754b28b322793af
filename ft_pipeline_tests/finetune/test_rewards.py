"""Rewards: the built-in ones on their probes, functions by import path, and the calibration that training asks for."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.errors import DataError, RecipeError, TrainingFailed
from ft_pipeline.finetune.rewards import builtin
from ft_pipeline.finetune.rewards.builtin import BUILT_IN
from ft_pipeline.finetune.rewards.calibrate import (
    calibrate,
    excess,
    measure,
    read_calibration,
    read_probes,
    refuse_uncalibrated,
    upper_bound,
)
from ft_pipeline.finetune.rewards.function import function_of, probes_of, reward_spec, source_of
from ft_pipeline.recipe_reinforce import Reward
from ft_pipeline_tests.finetune import policies

LETTERS = Reward(name=policies.LETTERS, probes=str(policies.PROBES), pass_at=1.0)


def written(tmp_path, probes) -> str:
    path = tmp_path / "probes.jsonl"
    path.write_text(
        "".join(json.dumps(dict(zip(("completion", "answer", "pass"), p, strict=True))) + "\n" for p in probes)
    )
    return str(path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_reward_is_right_on_every_probe_that_comes_with_it(tmp_path, name):
    report = measure(Reward(name=name), read_probes(probes_of(Reward(name=name), home=tmp_path)))
    assert (report.false_pass, report.false_fail, report.wrong) == (0, 0, ())
    assert min(report.should_pass, report.should_fail) >= 10


@given(st.integers(-(10**6), 10**6), st.text(alphabet="abc .,\n", max_size=20))
def test_a_number_is_found_behind_four_hashes_and_as_the_last_one(number, words):
    answer = [str(number)]
    assert builtin.numeric_answer([f"{words} 5 {words}\n#### {number:,}"], answer) == [1.0]
    assert builtin.numeric_answer([f"first 5, then {number}"], answer) == [1.0]
    assert builtin.numeric_answer([f"#### {number + 1}"], answer) == [0.0]


def test_messages_are_read_as_trl_hands_them_over():
    said = [[{"role": "assistant", "content": "#### 7"}], "7"]
    assert builtin.numeric_answer(said, ["7", "7"]) == [1.0, 1.0]


def test_an_answer_without_a_number_is_not_scored():
    assert builtin.numeric_answer(["7"], ["seven"]) == [None]
    assert math.isnan(function_of(Reward(name="numeric_answer"))(["7"], answer=["seven"])[0])


def test_parameters_reach_the_function_and_unknown_ones_are_refused():
    score = function_of(Reward(name="exact_answer", parameters={"ignore_case": True}))
    assert score(["YES"], answer=["yes"], prompts=["?"]) == [1.0]
    with pytest.raises(RecipeError, match="cannot be called"):
        function_of(Reward(name="matches"))


def test_a_calibration_counts_both_kinds_of_error_and_is_the_artifact(store, tmp_path):
    good, bad = [("json", "json", True)] * 9, [("socket", "json", False)] * 9
    # what the function passes although it is wrong, and fails although it is right
    reward = replace(LETTERS, probes=written(tmp_path, [*good, ("xjson", "json", True), *bad, ("nosj", "json", False)]))
    artifact = calibrate(store, reward, home=tmp_path)
    report = read_calibration(artifact)
    assert (report.should_pass, report.should_fail, report.false_pass, report.false_fail) == (10, 10, 1, 1)
    assert [(w["line"], w["reward"]) for w in report.wrong] == [(10, 0.8), (20, 1.0)]
    assert calibrate(store, reward, home=tmp_path).ref == artifact.ref
    with pytest.raises(RecipeError, match="has 1 false passes on 10 probes, the limit is 0"):
        refuse_uncalibrated(artifact, reward)
    refuse_uncalibrated(artifact, replace(reward, max_false_pass=0.1, max_false_fail=0.1, weight=3.0))
    assert "1 false fails on 10" in str(excess(report, replace(reward, max_false_pass=0.1)))


def test_a_calibration_is_of_one_function_with_its_parameters_and_probes(store, tmp_path):
    artifact = calibrate(store, LETTERS, home=tmp_path)
    refuse_uncalibrated(artifact, LETTERS)
    for other in (replace(LETTERS, pass_at=0.5), replace(LETTERS, parameters={"x": 1}), Reward(name="exact_answer")):
        with pytest.raises(RecipeError, match="not calibrated"):
            refuse_uncalibrated(artifact, other)
    probes = written(tmp_path, [("a", "a", True)] * 10 + [("b", "a", False)] * 10)
    specs = {reward_spec(r, home=tmp_path).fingerprint for r in (LETTERS, replace(LETTERS, probes=probes))}
    assert len(specs) == 2


def test_changed_code_asks_for_a_new_calibration(store, tmp_path, monkeypatch):
    source = tmp_path / "my_rewards.py"
    source.write_text(
        '"""Mine."""\ndef shout(completions, **columns):\n    return [float(c.isupper()) for c in completions]\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    probes = written(tmp_path, [("YES", "", True)] * 10 + [("yes", "", False)] * 10)
    reward = Reward(name="my_rewards:shout", probes=probes)
    artifact = calibrate(store, reward, home=tmp_path)
    refuse_uncalibrated(artifact, reward)
    source.write_text(source.read_text().replace("isupper", "istitle"))
    with pytest.raises(RecipeError, match="not calibrated as it is now"):
        refuse_uncalibrated(artifact, reward)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exact", "exact_answer"),
        ("no_such_package:f", "no module no_such_package"),
        ("json:dumps_", "defines no function"),
        ("math:sqrt", "no module math with Python source"),
        ("json.decoder:JSONDecoder", "defines no function"),
    ],
)
def test_what_is_no_function_of_a_module_with_source_is_refused(tmp_path, name, said):
    reward = Reward(name=name, probes=str(policies.PROBES))
    with pytest.raises(RecipeError, match=said):
        source_of(reward)
        function_of(reward)


@pytest.mark.parametrize("made", ["[1.0]", "[float('inf')] * 2", "[float('nan')] * 2", "1.0"])
def test_what_is_not_one_number_a_completion_stops_the_run(tmp_path, monkeypatch, made):
    name = f"broken_{abs(hash(made))}"
    (tmp_path / f"{name}.py").write_text(f"def f(completions, **columns):\n    return {made}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TrainingFailed, match=f"reward {name}:f gave"):
        function_of(Reward(name=f"{name}:f"))(["a", "b"])


def test_few_probes_or_lines_that_are_none_are_refused():
    line = b'{"completion": "a", "answer": "a", "pass": true}\n'
    with pytest.raises(DataError, match="12 probes should pass and 0 should fail"):
        read_probes(line * 12)
    with pytest.raises(DataError, match="probe 2 is not"):
        read_probes(line + b'{"completion": "a", "answer": "a", "pass": "yes"}\n')


def test_a_reward_with_parameters_of_its_own_needs_probes_of_its_own(tmp_path):
    with pytest.raises(RecipeError, match="has no probes"):
        reward_spec(Reward(name="matches", parameters={"pattern": "a+"}), home=tmp_path)
    with pytest.raises(RecipeError, match="no probes at"):
        reward_spec(Reward(name="exact_answer", probes="home://missing.jsonl"), home=tmp_path)


def test_the_bound_of_a_rate_is_that_of_clopper_and_pearson():
    assert upper_bound(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20), abs=1e-6)
    assert upper_bound(5, 5) == 1.0 and upper_bound(1, 20) == pytest.approx(0.216106, abs=1e-5)
