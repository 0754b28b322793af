"""Policy methods: each learns from its own completions, resumes bit for bit, and its rollouts are kept beside the checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ft_pipeline.errors import Interrupted, RecipeError
from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.policies import OBJECTIVES, refuse_policy
from ft_pipeline.finetune.rewards.calibrate import calibrate
from ft_pipeline.finetune.rollout_store import read_rollouts, read_tax, rollouts_spec, shards
from ft_pipeline.recipe import Finetune, Lora
from ft_pipeline.recipe_reinforce import Critic, Reward
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import policies

NEVER = SimpleNamespace(asked=False)
WHOLE = ("grpo", "remax", "ppo", "kdrl")
"""Also with every weight trained: the reference is a frozen copy then."""


class Asked:
    """A stop request that is asked for after so many questions."""

    def __init__(self, after: int) -> None:
        self.left = after

    @property
    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def asks(road):
    """Prompts with answers, and a teacher of the same tokenizer."""
    return SimpleNamespace(
        store=road.store, base=road.base, shards=policies.prompts(road.store, road.base),
        teacher=tiny.publish_base(road.store, tiny.base_folder(road.folder / "teacher", seed=5)),
    )  # fmt: skip


def run_of(asks, folder, method: str, stop=NEVER, **changes):
    wanted = {"teacher": asks.teacher} if OBJECTIVES[method].teacher else {}
    if not OBJECTIVES[method].rewarded:
        changes["reinforce"] = {"rewards": (), **changes.get("reinforce", {})}
    return policies.run_over(asks, folder, stop, method=method, **wanted, **changes)


def bytes_of(run) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in run.trainee.live_tensors().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "lora"), [*((m, Lora(rank=4, alpha=8, dropout=0.1)) for m in OBJECTIVES), *((m, None) for m in WHOLE)]
)
def test_a_stopped_run_of_each_method_ends_in_the_same_bytes_and_rollouts(asks, tmp_path, method, lora):
    changes = {"lora": lora, "epochs": 2, "windows_per_step": 4, "windows_per_micro": 4 if method == "dapo" else 2}
    whole = run_of(asks, tmp_path / "a", method, **changes)
    whole.method.tools.rollouts.recording = True
    expected = train(whole)
    with pytest.raises(Interrupted):
        stopped = run_of(asks, tmp_path / "b", method, Asked(after=5), **changes)
        stopped.method.tools.rollouts.recording = True
        train(stopped)
    resumed = run_of(asks, tmp_path / "b", method, **changes)
    resumed.method.tools.rollouts.recording = True
    state = train(resumed)
    assert 0 < resumed.metrics.first_step < whole.schedule.steps
    assert state == expected and bytes_of(resumed) == bytes_of(whole)
    rows, again = (read_rollouts(tmp_path / name / "rollouts") for name in ("a", "b"))
    assert rows == again and len(rows) == whole.schedule.steps * 4 * 4
    assert any(entry["grad_norm"] > 0 for entry in expected.losses)


def test_a_rollout_says_what_was_sampled_and_what_it_was_worth(asks, tmp_path):
    run = run_of(asks, tmp_path, "grpo", reinforce={"rewards": policies.plan().rewards})
    run.method.tools.rollouts.recording = True
    state = train(run)
    rows = read_rollouts(tmp_path / "rollouts")
    assert {row["step"] for row in rows} == set(range(1, state.step + 1))
    assert {row["row_id"] for row in rows} <= {ask.row_ids[0] for ask in run.train}
    for start in range(0, len(rows), 4):
        group = rows[start : start + 4]
        assert len({row["prompt"] for row in group}) == 1
        rewards = torch.tensor([row["reward"] for row in group])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        assert torch.allclose(torch.tensor([row["advantage"] for row in group]), expected, atol=1e-5)
        assert all(row["reward"] == row["reward_letters"] and row["tokens"] <= 6 for row in group)
    assert state.losses[0]["reward"] == pytest.approx(sum(r["reward"] for r in rows if r["step"] == 1) / 16)


def test_only_the_newest_steps_are_kept(asks, tmp_path):
    run = run_of(asks, tmp_path, "grpo", epochs=2, keep_steps=2)
    run.method.tools.rollouts.recording = True
    last = train(run).step
    assert {row["step"] for row in read_rollouts(tmp_path / "rollouts")} == {last - 1, last}
    assert len(run.method.tools.rollouts.sizes) == last


def test_the_first_update_of_a_rollout_has_a_ratio_of_one_and_a_divergence_of_nothing(asks, tmp_path):
    run = run_of(asks, tmp_path, "grpo", lora=Lora(rank=4, alpha=8))
    torch.manual_seed(0)
    batch = run.method.batch(run.trainee, run.train[:4])
    found = run.method.loss(run.trainee, batch)
    assert float(found.facts["kl"]) == pytest.approx(0, abs=1e-9) and float(found.facts["clipped"]) == 0
    assert float(found.total) == pytest.approx(0, abs=1e-5)  # the advantages of a group add up to 0


@pytest.mark.slow
def test_the_divergence_from_the_reference_grows_and_its_weight_holds_it_back(asks, tmp_path):
    apart = {}
    for weight in (0.0, 2.0):
        run = run_of(asks, tmp_path / str(weight), "grpo", epochs=6, reinforce={"kl_weight": weight})
        apart[weight] = sum(entry["kl"] for entry in train(run).losses[-6:])
    assert apart[2.0] < apart[0.0] / 2


@pytest.mark.parametrize("method", ["rloo", "remax"])
def test_the_divergence_lowers_the_reward_of_rloo_and_remax(asks, tmp_path, method):
    run = run_of(asks, tmp_path, method, reinforce={"kl_weight": 0.5})
    with torch.no_grad():
        for parameter in run.trainee.trained:
            parameter.add_(0.3)
    made = []
    for weight in (0.0, 0.5):
        run.method.plan = replace(run.method.plan, kl_weight=weight)
        torch.manual_seed(0)
        batch = run.method.batch(run.trainee, run.train[:4])
        made.append(batch)
    same, lowered = made
    kl = ((lowered.sampled - lowered.reference) * lowered.mask).sum(1).view(4, 4)
    centre = kl - (kl.sum(1, keepdim=True) - kl) / 3 if method == "rloo" else kl
    assert torch.allclose(lowered.advantages.view(4, 4), same.advantages.view(4, 4) - 0.5 * centre, atol=1e-4)


def test_a_prompt_without_variance_is_drawn_again_and_then_skipped(asks, tmp_path, monkeypatch):
    run = run_of(asks, tmp_path, "dapo", reinforce={"overlong_tokens": 0})
    run.method.tools.scores = [lambda completions, **columns: [float("7" in a) for a in columns["row_id"]]]
    torch.manual_seed(0)
    batch = run.method.batch(run.trainee, run.train[:4])
    assert batch.facts["flat_groups"] == 1.0 and batch.facts["resampled"] == 2.0
    assert float(batch.mask.sum()) == 0 and float(run.method.loss(run.trainee, batch).total) == 0


def test_validation_is_what_greedy_completions_earn(asks, tmp_path):
    run = run_of(asks, tmp_path, "grpo")
    run.trainee.model.eval()
    batch = run.method.batch(run.trainee, run.validation)
    total = float(run.method.loss(run.trainee, batch).total)
    texts = [run.method.tools.text(ids) for ids in _greedy(run)]
    assert total == pytest.approx(-sum(policies.letters(texts, [ask.answer for ask in run.validation])))


@pytest.mark.parametrize("lora", [None, Lora(rank=16, alpha=32)], ids=["full", "lora"])
def test_a_student_comes_closer_to_its_teacher_on_completions_of_its_own(asks, tmp_path, lora):
    state = train(
        run_of(asks, tmp_path, "on_policy_distill", epochs=8, lora=lora, learning_rate=1e-2 if lora is None else 3e-3)
    )
    before, after = state.validations["0"], state.validations[str(state.step)]
    print(f"divergence of greedy completions {before:.4f} -> {after:.4f}")
    # an adapter leaves the embeddings alone, in which two random models differ most
    left = 0.5 if lora is None else 0.75
    assert 0 < after < before * left
    assert state.losses[-1]["teacher_kl"] < state.losses[0]["teacher_kl"] * (left + 0.1)


@pytest.mark.usefixtures("no_mlflow")
def test_a_recipe_trains_to_checkpoints_and_rollouts_of_its_own(asks):
    whole = tiny.recipe(method="grpo", reinforce=policies.plan(), windows_per_step=4, windows_per_micro=2, epochs=2)
    calibrate(asks.store, policies.plan().rewards[0], home=asks.store.work)
    made = tiny.train_here(asks.store, whole, asks.shards, asks.base, threads=1)
    assert {role: ref.kind for role, ref in made.manifest.parents.items()} == {
        "shards": "packed_shards", "base": "base_model", "reward_1": "reward_function",
    }  # fmt: skip
    assert not any("rollout" in name for name in made.manifest.files)
    rollouts = asks.store.find(rollouts_spec(made.ref, 1000))
    steps = made.manifest.counts["steps"]
    assert rollouts.manifest.counts == {"rows": steps * 16, "shards": steps * 2, "steps": steps}
    tax = read_tax(rollouts)
    assert tax["rollout_bytes_per_step"] == sum(p.stat().st_size for p in shards(rollouts.folder)) / steps
    assert tax["storage_ratio_to_sft"] > 1
    assert {"reward", "kl_completion", "flat_groups", "length"} <= set(read_losses(made)[-1])
    completion = json.loads(made.file("completion.json").read_text())
    assert completion["boundary"]["fault"] == "" and completion["boundary"]["windows"] > 0


@pytest.mark.usefixtures("no_mlflow")
def test_a_recipe_whose_reward_is_not_calibrated_is_refused_with_the_cure(asks):
    plan = policies.plan(rewards=(Reward(name=policies.LETTERS, probes=str(policies.PROBES), pass_at=0.9),))
    whole = tiny.recipe(method="grpo", reinforce=plan, windows_per_step=4, windows_per_micro=2)
    with pytest.raises(RecipeError, match="not calibrated as it is now") as refused:
        tiny.train_here(asks.store, whole, asks.shards, asks.base)
    assert refused.value.cure == "ft-pipeline rewards calibrate RECIPE"


def test_a_method_takes_no_reward_that_is_not_calibrated_as_it_is(asks, tmp_path):
    section = tiny.recipe(method="grpo", reinforce=policies.plan()).finetune
    given = policies.given(asks.store, section, asks.base)
    other = replace(policies.plan().rewards[0], pass_at=0.5)
    changed = replace(section, reinforce=replace(section.reinforce, rewards=(other,)))
    for name, artifact in (("reward_1", None), ("reward_1", given["reward_1"])):
        with pytest.raises(RecipeError, match="not calibrated"):
            method_of(changed if artifact else section, cache=tmp_path, **{**given, name: artifact})


def section_of(method: str, **changes) -> Finetune:
    plan = {k: changes.pop(k) for k in list(changes) if k not in ("windows_per_step", "windows_per_micro", "reinforce")}
    return tiny.recipe(**{"method": method, "reinforce": policies.plan(**plan), **changes}).finetune


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("grpo", {"reinforce": None}, "needs finetune.reinforce"),
        ("grpo", {"rewards": ()}, "with 0 rewards"),
        ("on_policy_distill", {"teacher": "ab"}, "with 1 rewards"),
        ("kdrl", {}, "with reinforce.teacher None"),
        ("grpo", {"teacher": "ab"}, "with reinforce.teacher ab"),
        ("rloo", {"completions": 1}, "completions 1"),
        ("grpo", {"critic": Critic()}, "critic belongs to ppo"),
        ("ppo", {"resamples": 1}, "changes nothing"),
        ("dapo", {"windows_per_step": 8, "windows_per_micro": 4}, "windows_per_micro 4 of 8"),
        ("on_policy_distill", {"teacher": "ab", "rewards": (), "kl_weight": 0.1}, "changes nothing"),
    ],
)
def test_what_cannot_train_or_would_change_nothing_is_refused(method, changes, said):
    with pytest.raises(RecipeError, match=said):
        refuse_policy(section_of(method, **changes))


def _greedy(run):
    from ft_pipeline.finetune.rollout import sample

    return [
        c.ids for c in sample(run.trainee, [ask.prompt_ids for ask in run.validation], run.method.sampling(greedy=True))
    ]
