"""Reward models as rewards: what their numbers are, what is refused before training, a policy that earns more, and its lineage."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from ft_pipeline.encode.artifact import read_pairs, read_stepwise
from ft_pipeline.errors import DataError, RecipeError, TrainingFailed
from ft_pipeline.finetune.adapter import package
from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.policies import policy_parents
from ft_pipeline.finetune.rewards.calibrate import calibrate, read_calibration, score_functions
from ft_pipeline.finetune.rewards.function import function_of, short_name
from ft_pipeline.finetune.rewards.trained import TrainedReward, trained_of
from ft_pipeline.finetune.score import scores
from ft_pipeline.recipe_reinforce import Reinforce, Reward
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import test_policy_learns

pytestmark = pytest.mark.slow

COUNT = 12


@pytest.fixture(scope="module")
def models(road, pairs, stepwise):
    """Reward models by method: the adapter of one for pairs, the checkpoints of a full one for pairs and of one for steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_MLFLOW", "off")
        usual = {"epochs": 4, "learning_rate": 3e-3}
        made = tiny.train_here(road.store, tiny.recipe(method="reward", **usual), pairs, road.base)
        return {
            "reward": package(road.store, checkpoints=made, base=road.base, base_uri="hf://tiny/base@1"),
            "reward full": tiny.train_here(
                road.store, tiny.recipe(method="reward", lora=None, **usual), pairs, road.base
            ),
            "process_reward": tiny.train_here(
                road.store, tiny.recipe(method="process_reward", **usual), stepwise, road.base
            ),
            "sft": tiny.train_here(road.store, tiny.recipe(epochs=1), road.shards, road.base),
        }


@pytest.fixture(scope="module")
def probes(road):
    """Method -> a file of labelled probes."""
    pairs, solutions = tiny.pair_rows(COUNT), tiny.stepwise_rows(40)
    told = {"reward": [], "process_reward": []}
    for row in pairs:
        for side, good in (("chosen", True), ("rejected", False)):
            told["reward"].append((row["prompt"][0]["content"], row[side][0]["content"], good))
    for row in solutions:
        told["process_reward"].append((row["prompt"], "\n".join(row["steps"]), all(row["labels"])))
    for name, rows in told.items():
        lines = [json.dumps({"prompt": p, "completion": c, "answer": "", "pass": good}) + "\n" for p, c, good in rows]
        (road.folder / f"{name}.jsonl").write_text("".join(lines))
    return {name: str(road.folder / f"{name}.jsonl") for name in told}


def reward_of(models, probes, name: str, **changes) -> Reward:
    method = name.split()[0]
    given = {"name": f"model:{models[name].ref.digest}", "probes": probes[method], "max_false_fail": 0.1}
    return Reward(**{**given, **changes})


def trained_named(road, models, probes, name: str) -> TrainedReward:
    trained = trained_of(reward_of(models, probes, name), store=road.store, find=finding(*models.values()))
    assert trained is not None
    return trained


def finding(*artifacts):
    """What the catalog does."""
    return lambda digest: next(a for a in artifacts if a.ref.digest.startswith(digest))


def asked(road, reward, models) -> Reinforce:
    plan = Reinforce(max_new_tokens=8, completions=8, rewards=(reward,))
    calibrate(road.store, reward, home=road.folder, find=finding(*models.values()))
    return plan


@pytest.mark.parametrize("name", ["reward", "reward full"])
def test_an_answer_earns_what_the_reward_model_gave_it_in_training(road, pairs, models, probes, tmp_path, name):
    trained = trained_named(road, models, probes, name)
    score = function_of(reward_of(models, probes, name, parameters={"normalize": "none"}), trained)
    rows = list(read_pairs(pairs, "validation"))
    asked = {"prompts": [""] * 2 * len(rows), "answer": [], "row_id": []}
    asked["prompt_ids"] = [row.prompt_ids for row in rows for _ in range(2)]
    answers = [ids for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    found = score([""] * len(answers), **asked, completion_ids=answers)
    assert all(good > bad for good, bad in zip(found[::2], found[1::2], strict=True))
    # a completion that was cut is read as if it ended there
    cut = score([""] * len(answers), **asked, completion_ids=[ids[:-1] for ids in answers])
    assert cut == pytest.approx(found, abs=1e-5)
    text = [road_text(road, ids) for ids in answers]
    assert score(text, **asked, completion_ids=[[]] * len(answers)) == pytest.approx(found, abs=1e-5)
    squashed = function_of(reward_of(models, probes, name), trained)(text, **asked, completion_ids=answers)
    assert squashed == pytest.approx(torch.tensor(found).sigmoid().tolist(), abs=1e-5)
    method = method_of(trained.section, cache=tmp_path)
    trainee = replace(trained_trainee(trained), section=trained.section)
    batch = method.batch(trainee, method.items(pairs, "validation")[:])
    with torch.no_grad():
        assert found == pytest.approx(scores(trainee.model, batch.rows, batch.ends).tolist(), abs=1e-4)


def road_text(road, ids) -> str:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(road.base.folder)
    return tokenizer.decode(ids, skip_special_tokens=True)


def trained_trainee(trained):
    from ft_pipeline.finetune.rewards.scorer import open_scorer

    return open_scorer(trained, device="cpu").trainee


def test_the_steps_of_an_answer_become_one_number(road, stepwise, models, probes):
    trained = trained_named(road, models, probes, "process_reward")
    rows = list(read_stepwise(stepwise, "validation"))
    texts = [road_text(road, row.completion_ids) for row in rows]
    asked = {"prompts": [""] * len(rows), "answer": [], "row_id": [], "completion_ids": [[]] * len(rows)}
    asked["prompt_ids"] = [row.prompt_ids for row in rows]
    found = {
        over: function_of(reward_of(models, probes, "process_reward", parameters={"over": over}), trained)(
            texts, **asked
        )
        for over in ("min", "product", "mean", "last")
    }
    right = [all(row.labels) for row in rows]
    assert [value > 0.5 for value in found["min"]] == right
    assert [value > 0.5 for value in found["last"]] == [row.labels[-1] for row in rows]
    for low, mid, high in zip(found["product"], found["min"], found["mean"], strict=True):
        assert low <= mid <= high
    usual = function_of(reward_of(models, probes, "process_reward"), trained)
    assert usual(texts, **asked) == found["min"]
    # blank lines are no steps, and an answer without any earns nothing
    spread = [text.replace("\n", "\n\n") for text in texts]
    assert usual(spread, **asked) == pytest.approx(found["min"], abs=1e-6)
    assert usual(["\n"] * len(rows), **asked) == [0.0] * len(rows)


@pytest.mark.parametrize("name", ["reward", "process_reward"])
def test_a_calibration_is_a_child_of_the_reward_model_and_holds_what_training_needs(road, models, probes, name):
    reward = reward_of(models, probes, name)
    made = calibrate(road.store, reward, home=road.folder, find=finding(*models.values()))
    report = read_calibration(made)
    assert report.false_pass == 0 and report.should_pass >= 10 and report.should_fail >= 10
    assert made.manifest.parents == {"model": models[name].ref, "base": road.base.ref}
    assert made.manifest.config["reward_model"]["trained_as"]["method"] == name
    assert made.manifest.config["reward_model"]["step_separator"] == "\n"
    assert short_name(reward) == f"model_{models[name].ref.digest[:8]}"


@pytest.mark.slow
@pytest.mark.usefixtures("no_mlflow")
def test_a_policy_earns_more_from_a_reward_model_which_is_its_parent(road, models, probes, tmp_path, monkeypatch):
    monkeypatch.setattr(test_policy_learns, "WARM_EPOCHS", 10)
    # a policy that says as often what the reward model likes as what it does not
    asks = tiny.pair_rows(40)
    chats = [{"messages": [*row["prompt"], *row[side]]} for row in asks for side in ("chosen", "rejected")]
    said = tiny.publish_shards(road.store, tiny.publish_curated(road.store, chats), road.base)
    policy = test_policy_learns.warmed(road.store, road.base, said, tmp_path / "warm")
    plan = asked(road, reward_of(models, probes, "reward"), models)
    rows = [{"prompt": row["prompt"], "answer": "-"} for row in asks]
    curated = tiny.publish_curated(road.store, rows, validation=8, shape="rlvr")
    whole = tiny.recipe(
        method="grpo", reinforce=plan, lora=None, learning_rate=1e-3, epochs=4, windows_per_step=8, windows_per_micro=8,
        schedule="constant", resume_certificate=True,
    )  # fmt: skip
    shards = tiny.publish_shards(road.store, curated, policy)
    made = tiny.train_here(road.store, whole, shards, policy, teacher=models["reward"], threads=1)
    earned = [entry["reward"] for entry in read_losses(made)]
    print("reward of the first and last four steps:", sum(earned[:4]) / 4, sum(earned[-4:]) / 4)
    assert sum(earned[-4:]) / 4 > sum(earned[:4]) / 4 + 0.15
    parents = made.manifest.parents
    assert parents["reward_1_model"] == models["reward"].ref and parents["reward_1_base"] == road.base.ref
    assert parents["reward_1"].kind == "reward_function"
    assert json.loads(made.file("resume.json").read_text())["verdict"] == "bit-exact"


def test_what_gives_no_score_or_reads_other_words_is_refused_before_training(road, models, probes, tmp_path):
    every = finding(*models.values(), road.shards)
    wrong = {
        "of kind packed_shards, not an adapter": Reward(name=f"model:{road.shards.ref.digest[:16]}"),
        "was trained by sft": Reward(name=f"model:{models['sft'].ref.digest}"),
        "has no parameter over": reward_of(models, probes, "reward", parameters={"over": "min"}),
        "normalize 'z' is none of sigmoid, none": reward_of(models, probes, "reward", parameters={"normalize": "z"}),
    }
    for said, reward in wrong.items():
        with pytest.raises(RecipeError, match=said):
            calibrate(road.store, reward, home=road.folder, find=every)
    for name in ("model:", "model:abc", "model:" + "g" * 64):
        with pytest.raises(ValueError, match="12 to 64 of its hex digits"):
            Reward(name=name)
    other = tiny.publish_base(road.store, tiny.base_folder(tmp_path / "other", template=tiny.PLAIN_TEMPLATE))
    section = tiny.recipe(method="grpo", reinforce=asked(road, reward_of(models, probes, "reward"), models)).finetune
    places = {"store": road.store, "home": road.folder, "find": every}
    assert set(policy_parents(section, base=road.base, **places)) == {"reward_1", "reward_1_model", "reward_1_base"}
    with pytest.raises(RecipeError, match="another chat_template than the base model"):
        policy_parents(section, base=other, **places)


def test_a_job_with_another_model_than_the_calibrated_one_and_rows_that_are_too_long_are_refused(
    road, models, probes, tmp_path
):
    reward = reward_of(models, probes, "reward")
    plan = asked(road, reward, models)
    made = calibrate(road.store, reward, home=road.folder, find=finding(*models.values()))
    given = {"reward_1": made, "reward_1_model": models["reward full"], "reward_1_base": road.base}
    with pytest.raises(RecipeError, match="calibrated with another reward model"):
        score_functions(plan, given, device="cpu")
    (score,) = score_functions(plan, {**given, "reward_1_model": models["reward"]}, device="cpu")
    with pytest.raises(TrainingFailed, match="the reward model reads 512"):
        score(["a"], prompts=["q"], prompt_ids=[[2] * 600], completion_ids=[[1]])
    path = tmp_path / "bare.jsonl"
    lines = [{"completion": "a", "answer": "a", "pass": n % 2 == 0} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="a probe has no prompt"):
        calibrate(road.store, replace(reward, probes=str(path)), home=road.folder, find=finding(*models.values()))
