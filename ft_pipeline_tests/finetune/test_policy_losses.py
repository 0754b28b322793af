"""Advantages and losses of the policy methods: TRL's own on the same numbers, and what holds for all numbers."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ft_pipeline.finetune.methods import advantages as worth
from ft_pipeline.finetune.methods import objectives as losses
from ft_pipeline.finetune.policies import OBJECTIVES

ROWS, LONGEST = 6, 9


@pytest.fixture
def drawn():
    """Log-probabilities now and when sampled and of a reference, advantages and mask of six completions."""
    made = torch.Generator().manual_seed(3)
    lengths = [9, 1, 4, 7, 2, 9]
    mask = torch.tensor([[1.0] * n + [0.0] * (LONGEST - n) for n in lengths])
    then = -torch.rand(ROWS, LONGEST, generator=made) * 3 * mask
    # the ratios go beyond every clip, both ways
    now = then + torch.randn(ROWS, LONGEST, generator=made) * 0.4 * mask
    reference = then + torch.randn(ROWS, LONGEST, generator=made) * 0.3 * mask
    return SimpleNamespace(
        mask=mask, then=then, now=now, reference=reference, advantages=torch.randn(ROWS, generator=made)
    )


def ours(drawn, name: str, kl_weight: float) -> torch.Tensor:
    objective = OBJECTIVES[name]
    logs = losses.log_ratios(drawn.now, drawn.then, drawn.mask, ratio=objective.ratio)
    each = losses.clipped_loss(logs, drawn.advantages, (objective.clip_low, objective.clip_high))
    spread = each.expand_as(drawn.mask) if objective.count != "whole" else each
    total = losses.counted(spread, drawn.mask, count=objective.count, longest=12)
    if kl_weight:
        apart = losses.divergence(drawn.now, drawn.reference)
        total = total + kl_weight * losses.counted(apart, drawn.mask, count=objective.count, longest=12)
    return total


class Trl(SimpleNamespace):
    """What TRL's `_compute_loss` reads of its trainer."""

    def __init__(self, drawn, **settings) -> None:
        accelerator = SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x
        )
        args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
        super().__init__(
            accelerator=accelerator, args=args, model=SimpleNamespace(training=True), aux_loss_enabled=False,
            top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
            current_gradient_accumulation_steps=1, max_completion_length=12,
            _metrics={"train": defaultdict(list)}, **settings,
        )  # fmt: skip
        self.drawn = drawn

    def _get_per_token_logps_and_entropies(self, *_args, **_settings):
        return self.drawn.now, torch.zeros_like(self.drawn.now), None


@pytest.mark.slow
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grpo", {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"}),
        ("dr_grpo", {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"}),
        ("dapo", {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28, "importance_sampling_level": "token"}),
        ("bnpo", {"loss_type": "bnpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"}),
        ("gspo", {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"}),
    ],
)  # fmt: skip
def test_the_loss_and_its_gradient_are_those_of_trls_grpo_trainer(drawn, name, settings, kl_weight):
    from trl.trainer.grpo_trainer import GRPOTrainer

    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1).long(), "prompt_mask": torch.ones(ROWS, 1).long(),
        "completion_ids": torch.zeros(ROWS, LONGEST).long(), "completion_mask": drawn.mask,
        "advantages": drawn.advantages, "old_per_token_logps": drawn.then, "ref_per_token_logps": drawn.reference,
        "num_items_in_batch": drawn.mask.sum(),
    }  # fmt: skip
    drawn.now.requires_grad_()
    theirs = GRPOTrainer._compute_loss(Trl(drawn, beta=kl_weight, **settings), None, inputs)
    (slope,) = torch.autograd.grad(theirs, drawn.now)
    mine = ours(drawn, name, kl_weight)
    (own,) = torch.autograd.grad(mine, drawn.now)
    assert abs(float(mine - theirs)) < 1e-6
    assert float((own - slope).abs().max()) < 1e-6 and float(own.abs().max()) > 1e-3


@pytest.mark.slow
def test_the_loss_of_rloo_is_that_of_trls_trainer(drawn):
    from trl.trainer.rloo_trainer import RLOOTrainer

    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1).long(), "prompt_mask": torch.ones(ROWS, 1).long(),
        "completion_ids": torch.zeros(ROWS, LONGEST).long(), "completion_mask": drawn.mask,
        "advantages": drawn.advantages, "old_logps": (drawn.then * drawn.mask).sum(1),
    }  # fmt: skip
    theirs = RLOOTrainer._compute_loss(Trl(drawn, epsilon_low=0.2, epsilon_high=0.2), None, inputs)
    assert abs(float(ours(drawn, "rloo", 0.0) - theirs)) < 1e-6


@pytest.mark.parametrize("unscored", [False, True])
def test_advantages_are_those_of_trls_formulas(unscored):
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    rewards[1] = 0.5
    if unscored:
        rewards[0, 2] = torch.nan
        rewards[2] = torch.nan
        rewards[3, :3] = torch.nan
    # grpo_trainer.py 2762 to 2810 and rloo_trainer.py 1676 to 1699 of TRL 1.16.0
    mean = rewards.nanmean(dim=1, keepdim=True)
    count = (~rewards.isnan()).sum(1, keepdim=True)
    deviation = torch.sqrt(torch.nanmean((rewards - mean) ** 2, dim=1, keepdim=True) * count / (count - 1))
    centred = rewards - mean
    grpo, dr_grpo = (torch.nan_to_num(a, nan=0.0) for a in (centred / (deviation + 1e-4), centred))
    rloo = torch.nan_to_num(
        rewards - (torch.nansum(rewards, dim=1, keepdim=True) - rewards) / (count - 1), nan=0.0, posinf=0.0, neginf=0.0
    )
    assert float((worth.group_normalized(rewards) - grpo).abs().max()) < 1e-6
    assert float((worth.centred(rewards) - dr_grpo).abs().max()) < 1e-6
    assert float((worth.leave_one_out(rewards) - rloo).abs().max()) < 1e-6


groups = st.lists(
    st.lists(st.floats(-5, 5, width=32).map(lambda v: round(v, 3)), min_size=4, max_size=4), min_size=1, max_size=4
).map(torch.tensor)


@given(groups)
def test_the_advantages_of_a_group_add_up_to_nothing(rewards):
    for formula in (worth.group_normalized, worth.centred, worth.leave_one_out):
        made = formula(rewards)
        assert torch.allclose(made.sum(dim=1), torch.zeros(len(rewards)), atol=1e-4)
        assert torch.isfinite(made).all()


@given(groups, st.floats(0.5, 4.0), st.floats(-3, 3))
def test_scale_and_shift_of_the_reward_do_not_matter_where_that_is_claimed(rewards, factor, shift):
    assume(bool((worth.deviation(rewards) > 0.1).all()))
    # relative to the epsilon of 1e-4 beside a deviation of .1
    assert torch.allclose(worth.group_normalized(rewards), worth.group_normalized(rewards * factor + shift), atol=5e-3)
    for formula in (worth.centred, worth.leave_one_out):
        assert torch.allclose(formula(rewards + shift), formula(rewards), atol=1e-4)
        assert torch.allclose(formula(rewards * factor), formula(rewards) * factor, atol=1e-4)


@given(groups)
def test_leave_one_out_is_the_centred_reward_times_n_over_n_minus_1(rewards):
    assert torch.allclose(worth.leave_one_out(rewards), worth.centred(rewards) * 4 / 3, atol=1e-4)


def test_a_group_of_one_reward_is_flat_and_teaches_nothing():
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.1, 0.1, 0.1], [0.0, 1.0, 0.0]])
    assert worth.is_flat(rewards).tolist() == [True, True, False]
    assert float(worth.group_normalized(rewards)[:2].abs().max()) < 1e-3


def test_a_greedy_baseline_is_subtracted_from_each_completion():
    made = worth.above_greedy(torch.tensor([[1.0, 0.0], [0.0, torch.nan]]), torch.tensor([0.5, 1.0]))
    assert made.tolist() == [[0.5, -0.5], [-1.0, 0.0]]


def test_generalized_advantages_are_the_sums_that_the_paper_writes_out():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    values, mask = torch.tensor([[0.2, 0.4, 0.6], [0.5, 0.1, 9.0]]), torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    made = worth.generalized(rewards, values, mask, discount=0.9, decay=0.8)
    last = 1.0 - 0.6
    middle = 0.9 * 0.6 - 0.4 + 0.72 * last
    first = 0.9 * 0.4 - 0.2 + 0.72 * middle
    short = 2.0 - 0.1
    assert torch.allclose(made, torch.tensor([[first, middle, last], [0.9 * 0.1 - 0.5 + 0.72 * short, short, 0.0]]))


def test_without_any_difference_in_the_policy_the_gradient_is_reinforce(drawn):
    now = drawn.then.clone().requires_grad_()
    drawn.now = now
    logs = losses.log_ratios(now, drawn.then, drawn.mask, ratio="whole")
    loss = losses.counted(
        losses.clipped_loss(logs, drawn.advantages, (0.2, 0.2)), drawn.mask, count="whole", longest=12
    )
    (slope,) = torch.autograd.grad(loss, now)
    assert torch.allclose(slope, -drawn.advantages[:, None] * drawn.mask / ROWS, atol=1e-6)


@given(st.integers(0, 40), st.integers(1, 20))
def test_the_overlong_punishment_is_that_of_dapo(length, last):
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=last)([[1] * length])[0]
    assert losses.overlong(length, longest=20, last=last) == pytest.approx(theirs)
