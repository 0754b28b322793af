"""ppo as pure functions of tensors [S, T]: the reward of each token, what it was worth, and the loss of the value head.

As 1909.08593 and InstructGPT (2203.02155) have it: each token costs its log-ratio to the reference, the last one earns what the
completion earned. The clipped loss of the policy (1707.06347) is objectives.clipped_loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ft_pipeline.finetune.methods.advantages import generalized
from ft_pipeline.finetune.methods.experience import PolicyBatch
from ft_pipeline.recipe_reinforce import Critic

SMALL = 1e-8
"""Beside a variance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a critic says of a rollout. [S, T] each."""

    mask: torch.Tensor
    """0 for a completion that could not be scored: it teaches neither policy nor critic."""
    advantages: torch.Tensor
    returns: torch.Tensor


def judged(
    totals: torch.Tensor, costs: torch.Tensor, values: torch.Tensor, *, mask: torch.Tensor, critic: Critic
) -> Judged:
    """Advantages and returns. totals: [S] rewards, NaN where not scored; costs: [S, T] of each token; values: [S, T] when sampled."""
    kept = mask * (~totals.isnan())[:, None]
    rewards = token_rewards(totals.nan_to_num(0.0), costs, kept)
    found = generalized(rewards, values * kept, kept, discount=critic.discount, decay=critic.decay)
    return Judged(
        mask=kept, advantages=whitened(found, kept) if critic.whiten else found, returns=found + values * kept
    )


def token_rewards(totals: torch.Tensor, costs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[S, T] minus the cost of each token, and the whole reward [S] at the last one."""
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)
    earned = torch.zeros_like(mask).scatter(1, last[:, None], totals[:, None])
    return (earned - costs) * mask


def whitened(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 over the tokens that count."""
    centred = (advantages - mean(advantages, mask)) * mask
    return centred / (mean(centred.square(), mask) + SMALL).sqrt()


def critic_loss(
    values: torch.Tensor, batch: PolicyBatch, critic: Critic
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the value head adds to the loss, and what is told of it: its loss before its weight, and the mean value."""
    assert batch.values is not None and batch.returns is not None
    wrong = value_loss(values, (batch.values, batch.returns), batch.mask, clip=critic.value_clip)
    return critic.value_weight * wrong, {"value_loss": wrong, "value": mean(values, batch.mask)}


def value_loss(
    now: torch.Tensor, then: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor, *, clip: float | None
) -> torch.Tensor:
    """Half the squared error, mean over tokens; where it is larger, that of the value held within `clip` of the old one.

    then: values when sampled, and returns.
    """
    old, returns = then
    errors = (now - returns).square()
    if clip is not None:
        held = old + (now - old).clamp(-clip, clip)
        errors = torch.max(errors, (held - returns).square())
    return 0.5 * mean(errors, mask)


def mean(each: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over the tokens that count; 0 without any."""
    return (each * mask).sum() / mask.sum().clamp(min=1)
