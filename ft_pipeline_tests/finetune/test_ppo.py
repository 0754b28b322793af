"""ppo: its loss and its advantages against loops over single tokens, its value head, and what is published of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.methods import ppo
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.rewards.calibrate import calibrate
from ft_pipeline.finetune.value_head import PREFIX
from ft_pipeline.recipe import Lora
from ft_pipeline.recipe_reinforce import Critic
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import policies

pytestmark = pytest.mark.slow

NEVER = SimpleNamespace(asked=False)
CRITIC = Critic(discount=0.9, decay=0.8, value_weight=0.3, value_clip=0.05, entropy_weight=0.02)


@pytest.fixture(scope="module")
def asks(road):
    """Prompts with answers."""
    return SimpleNamespace(store=road.store, base=road.base, shards=policies.prompts(road.store, road.base))


def run_of(asks, folder, **changes):
    return policies.run_over(asks, folder, NEVER, method="ppo", **{"lora": Lora(rank=4, alpha=8), **changes})


def moved(run, by: float, seed: int = 1) -> None:
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in run.trainee.trained:
            parameter.add_(torch.randn(parameter.shape, generator=made) * by)


def hidden_of(run, ids: list[int]) -> torch.Tensor:
    """[T, width] of one row alone, by the library's own forward."""
    inputs = torch.tensor([ids])
    told = run.trainee.model(
        input_ids=inputs, position_ids=torch.arange(len(ids))[None], use_cache=False, output_hidden_states=True,
        segments=None if not run.trainee.flat else policies_segments(len(ids)),
    )  # fmt: skip
    return told.hidden_states[-1][0]


def policies_segments(length: int):
    from ft_pipeline.finetune.attention import plan_segments

    return plan_segments([length], device="cpu")


def by_hand(run, batch, totals, kl_weight: float) -> tuple[float, float, float]:
    """(policy loss, value loss, entropy) of a rollout, token by token in plain Python floats."""
    critic, clip = run.method.critic, (0.2, 0.2)
    head = run.trainee.model.value_head
    tokens, start = [], 0
    ids = batch.rows.input_ids[0].tolist()
    whole = [n for line in batch.rows.lengths for n in line]
    for row, length in enumerate(batch.lengths):
        row_ids = ids[start : start + whole[row]]
        start += whole[row]
        hidden = hidden_of(run, row_ids)
        logs = torch.log_softmax(run.trainee.model.get_output_embeddings()(hidden), -1)
        first = whole[row] - length
        rewards = [-kl_weight * float(batch.sampled[row, t] - batch.reference[row, t]) for t in range(length)]
        rewards[-1] += float(totals[row])
        values = [float(batch.values[row, t]) for t in range(length)]
        advantages = []
        for t in range(length):
            total = 0.0
            for k in range(t, length):
                after = values[k + 1] if k + 1 < length else 0.0
                delta = rewards[k] + critic.discount * after - values[k]
                total += (critic.discount * critic.decay) ** (k - t) * delta
            advantages.append(total)
        for t in range(length):
            spread = logs[first + t - 1]
            tokens.append(
                {
                    "advantage": advantages[t], "return": advantages[t] + values[t], "old": values[t],
                    "value": float(head(hidden[first + t - 1])), "entropy": -float((spread.exp() * spread).sum()),
                    "ratio": math.exp(float(spread[row_ids[first + t]]) - float(batch.sampled[row, t])),
                }
            )  # fmt: skip
    mean = sum(t["advantage"] for t in tokens) / len(tokens)
    deviation = math.sqrt(sum((t["advantage"] - mean) ** 2 for t in tokens) / len(tokens))
    policy = value = entropy = 0.0
    for t in tokens:
        worth = (t["advantage"] - mean) / deviation
        held = min(max(t["ratio"], 1 - clip[0]), 1 + clip[1])
        policy -= min(t["ratio"] * worth, held * worth)
        near = t["old"] + min(max(t["value"] - t["old"], -critic.value_clip), critic.value_clip)
        value += 0.5 * max((t["value"] - t["return"]) ** 2, (near - t["return"]) ** 2)
        entropy += t["entropy"]
    return policy / len(tokens), value / len(tokens), entropy / len(tokens)


def test_the_loss_is_that_of_a_loop_over_tokens(asks, tmp_path):
    run = run_of(asks, tmp_path, reinforce={"kl_weight": 0.2, "critic": CRITIC})
    moved(run, 0.2)  # values, and a divergence from the reference
    torch.manual_seed(0)
    run.trainee.model.train()
    batch = run.method.batch(run.trainee, run.train[:3])
    moved(run, 0.05, seed=2)  # as an update does: the ratio departs from 1, the values move beyond their clip
    found = run.method.loss(run.trainee, batch)
    texts = [run.method.tools.text(ids) for ids in completions_of(batch)]
    totals = policies.letters(texts, [run.train[n // 4].answer for n in range(12)])
    policy, value, entropy = by_hand(run, batch, totals, 0.2)
    assert float(found.facts["clipped"]) > 0 and abs(policy) > 1e-3 and value > 1e-3
    assert float(found.facts["value_loss"].detach()) / 3 == pytest.approx(value, rel=1e-4)
    expected = policy + CRITIC.value_weight * value - CRITIC.entropy_weight * entropy
    assert float(found.total.detach()) / 3 == pytest.approx(expected, rel=1e-4, abs=1e-5)


def completions_of(batch) -> list[list[int]]:
    return [part.tolist() for part in batch.rows.targets.split(batch.lengths)]


def test_the_gradient_reaches_head_and_policy_and_not_what_was_computed_when_sampled(asks, tmp_path):
    run = run_of(asks, tmp_path, reinforce={"kl_weight": 0.2})
    moved(run, 0.2)
    torch.manual_seed(0)
    run.trainee.model.train()
    batch = run.method.batch(run.trainee, run.train[:3])
    kept = (batch.values, batch.returns, batch.advantages, batch.reference, batch.sampled)
    assert not any(tensor.requires_grad for tensor in kept)
    run.method.loss(run.trainee, batch).total.backward()
    slopes = {name: p.grad for name, p in run.trainee.model.named_parameters() if p.requires_grad}
    assert all(slope is not None and float(slope.abs().max()) > 0 for slope in slopes.values())
    assert any(name.startswith(PREFIX) for name in slopes)


def test_what_could_not_be_scored_teaches_neither_policy_nor_critic():
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0]])
    values = torch.full((3, 3), 0.5)
    found = ppo.judged(
        torch.tensor([1.0, torch.nan, 0.0]),
        torch.zeros(3, 3),
        values,
        mask=mask,
        critic=Critic(decay=1.0, whiten=False),
    )
    assert found.mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert found.advantages.tolist() == [[0.5, 0.5, 0.5], [0, 0, 0], [-0.5, 0, 0]]
    assert found.returns.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_the_reward_of_a_token_is_its_divergence_and_of_the_last_one_the_completions():
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    costs = torch.tensor([[0.1, 0.2, 9.0], [0.0, -0.1, 0.3]])
    made = ppo.token_rewards(torch.tensor([1.0, 2.0]), costs, mask)
    assert torch.allclose(made, torch.tensor([[-0.1, 0.8, 0.0], [0.0, 0.1, 1.7]]))


def test_the_value_head_learns_what_completions_earn(asks, tmp_path):
    run = run_of(asks, tmp_path, epochs=8, learning_rate=3e-3, schedule="constant")
    losses = train(run).losses
    assert {"value_loss", "value", "clipped", "ratio_change", "kl", "entropy", "reward"} <= set(losses[0])
    first, last = (sum(e["value_loss"] for e in part) / 4 for part in (losses[:4], losses[-4:]))
    assert last < first * 0.7
    assert abs(losses[-1]["value"] - losses[-1]["reward"]) < abs(losses[0]["value"] - losses[0]["reward"])


def test_one_completion_a_prompt_is_enough_and_no_flat_group(asks, tmp_path):
    state = train(run_of(asks, tmp_path, reinforce={"completions": 1}))
    assert "flat_groups" not in state.losses[0] and any(entry["grad_norm"] > 0 for entry in state.losses)


@pytest.mark.usefixtures("no_mlflow")
@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
def test_the_value_head_is_no_part_of_what_is_published(asks, lora):
    whole = tiny.recipe(
        method="ppo", reinforce=policies.plan(), windows_per_step=4, windows_per_micro=2, lora=lora, learning_rate=1e-3
    )
    calibrate(asks.store, policies.plan().rewards[0], home=asks.store.work)
    made = tiny.train_here(asks.store, whole, asks.shards, asks.base, threads=1)
    from safetensors import safe_open

    name = "adapter_model.safetensors" if lora else "model.safetensors"
    with safe_open(made.file(name), "pt") as tensors:
        names = set(tensors.keys())
    plain = load_trainee(asks.base.folder, tiny.recipe(lora=lora).finetune)
    assert names == set(plain.tensors()) and not any("value" in n for n in names)
    assert read_losses(made)[-1]["value"] != 0
