"""`rewards`: the built-in ones with their calibration, and the calibration of a recipe's own."""

from __future__ import annotations

import json

import pytest

from ft_pipeline_tests import road

PROBES = [{"completion": "json", "answer": "json", "pass": True}] * 10 + [
    {"completion": "ssl", "answer": "json", "pass": False}
] * 10


@pytest.fixture
def recipe(home):
    """Writes a grpo recipe with one reward over the probes."""

    home.home.mkdir(parents=True, exist_ok=True)

    def write(probes, **reward) -> str:
        (home.home / "probes.jsonl").write_text("".join(json.dumps(p) + "\n" for p in probes))
        section = {
            "method": "grpo", "lora": None, "learning_rate": 1e-3, "epochs": 1, "windows_per_step": 4, "windows_per_micro": 4,
            "reinforce": {"max_new_tokens": 8, "rewards": [{"name": "exact_answer", "probes": "home://probes.jsonl", **reward}]},
        }  # fmt: skip
        return str(road.write_recipe(home.home, finetune=section))

    return write


def test_the_built_in_rewards_are_listed_with_their_errors(typed):
    rows = {row["reward"]: row for row in json.loads(typed("rewards", "list", "--json").out)}
    assert {"exact_answer", "numeric_answer", "matches", "valid_json", "length_between", "think_format"} == rows.keys()
    assert rows["numeric_answer"]["false_pass"] == "0/18" and rows["numeric_answer"]["at_most"] < 0.2


def test_a_recipe_is_calibrated_once(recipe, typed, store):
    path = recipe(PROBES)
    made = [json.loads(typed("rewards", "calibrate", path, "--json").out)[0] for _ in range(2)]
    assert made[0] == made[1] and made[0]["verdict"] == "within its limits"
    assert [m.digest[:12] for m in store.all("reward_function")] == [made[0]["digest"]]


def test_a_reward_above_its_limit_ends_with_three_and_shows_the_wrong_probes(recipe, typed):
    wrong = [*PROBES, {"completion": "json ", "answer": "json", "pass": False}]
    answer = typed("rewards", "calibrate", recipe(wrong))
    assert answer.code == 3
    assert "probe 21 should fail, reward 1.0" in answer.out
    assert typed("rewards", "calibrate", recipe(wrong, max_false_pass=0.1)).code == 0


def test_a_recipe_without_rewards_says_so(home, typed):
    answer = typed("rewards", "calibrate", str(road.write_recipe(home.home)))
    assert answer.code == 2 and "has no rewards" in answer.err


def test_a_reward_model_that_is_not_in_the_catalog_is_told_by_its_digest(recipe, typed):
    answer = typed("rewards", "calibrate", recipe(PROBES, name="model:0123456789abcdef"))
    assert answer.code != 0 and "no artifact '0123456789abcdef' in the catalog" in answer.err
    answer = typed("rewards", "calibrate", recipe(PROBES, name="model:zip"))
    assert answer.code == 2 and "12 to 64 of its hex digits" in answer.err
