"""What a completion is worth against its siblings: pure functions of rewards [P, G], NaN where a completion could not be scored.

An advantage of NaN is 0: what cannot be scored moves nothing. Formulas of TRL 1.16 (parity-tested), whose standard deviation
is that of a sample (n - 1).
"""

from __future__ import annotations

import torch

EPSILON = 1e-4
"""Beside a standard deviation, as TRL has it: a group without variance has advantages of 0, not of NaN."""


def group_normalized(rewards: torch.Tensor) -> torch.Tensor:
    """GRPO (2402.03300): (reward - group mean) / group deviation."""
    return centred(rewards) / (deviation(rewards) + EPSILON)


def centred(rewards: torch.Tensor) -> torch.Tensor:
    """Dr. GRPO (2503.20783): reward - group mean. Dividing by the deviation weighs easy and hard prompts more than others."""
    return torch.nan_to_num(rewards - rewards.nanmean(dim=1, keepdim=True), nan=0.0)


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """RLOO (2402.14740): reward - mean of the siblings'. Without a sibling there is no baseline: 0."""
    scored = (~rewards.isnan()).sum(dim=1, keepdim=True)
    siblings = (rewards.nansum(dim=1, keepdim=True) - rewards) / (scored - 1)
    return torch.nan_to_num(rewards - siblings, nan=0.0, posinf=0.0, neginf=0.0)


def above_greedy(rewards: torch.Tensor, greedy: torch.Tensor) -> torch.Tensor:
    """ReMax (2310.10505): reward - that of the greedy completion [P] of the same prompt."""
    return torch.nan_to_num(rewards - greedy[:, None], nan=0.0)


def deviation(rewards: torch.Tensor) -> torch.Tensor:
    """[P, 1] standard deviation of each group's scored rewards (n - 1); 0 for fewer than two."""
    scored = (~rewards.isnan()).sum(dim=1, keepdim=True)
    squares = (rewards - rewards.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    return (squares / (scored - 1).clamp(min=1)).sqrt()


def is_flat(rewards: torch.Tensor) -> torch.Tensor:
    """[P] True for a group whose scored rewards are all equal: it has nothing to teach."""
    return deviation(rewards)[:, 0] < 1e-8


def generalized(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, discount: float, decay: float
) -> torch.Tensor:
    """[S, T] generalized advantage estimates (1506.02438) of token rewards and values, right-padded; 0 where the mask is 0."""
    last, made = torch.zeros_like(rewards[:, 0]), []
    after = torch.cat([values[:, 1:] * mask[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + discount * after - values
    for place in reversed(range(rewards.shape[1])):
        last = (errors[:, place] + discount * decay * last) * mask[:, place]
        made.append(last)
    return torch.stack(made[::-1], dim=1)
