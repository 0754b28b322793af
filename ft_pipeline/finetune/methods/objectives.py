"""The losses of policy methods as pure functions of log-probabilities, advantages and masks."""

from __future__ import annotations

import torch

from ft_pipeline.finetune.policies import Count, Ratio


def log_ratios(now: torch.Tensor, then: torch.Tensor, mask: torch.Tensor, *, ratio: Ratio) -> torch.Tensor:
    """[S, T] or [S, 1] log of the ratio, of log-probabilities [S, T] now (with gradient) and when sampled."""
    difference = (now - then) * mask
    if ratio == "token":
        return difference
    whole = difference.sum(dim=1, keepdim=True)
    return whole / mask.sum(dim=1, keepdim=True).clamp(min=1) if ratio == "sequence" else whole


def clipped_loss(logs: torch.Tensor, advantages: torch.Tensor, clip: tuple[float, float]) -> torch.Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) of PPO (1707.06347), shape of `logs`. advantages: [S] or [S, T]."""
    each = advantages[:, None] if advantages.ndim == 1 else advantages
    ratios = logs.exp()
    return -torch.min(ratios * each, ratios.clamp(1 - clip[0], 1 + clip[1]) * each)


def clipped_share(logs: torch.Tensor, advantages: torch.Tensor, clip: tuple[float, float]) -> torch.Tensor:
    """Like `logs`: 1 where the clip holds the gradient back."""
    each = advantages[:, None] if advantages.ndim == 1 else advantages
    ratios = logs.exp()
    return (((ratios < 1 - clip[0]) & (each < 0)) | ((ratios > 1 + clip[1]) & (each > 0))).float()


def divergence(now: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Per-token estimate of KL(policy | reference) that is never negative (k3): exp(r - p) - (r - p) - 1."""
    difference = reference - now
    return difference.exp() - difference - 1


def entropies(logs: torch.Tensor) -> torch.Tensor:
    """[N] nats, of log-probabilities [N, vocabulary]."""
    return -(logs.exp() * logs).sum(dim=1)


def counted(per_token: torch.Tensor, mask: torch.Tensor, *, count: Count, longest: int) -> torch.Tensor:
    """The mean over a micro-batch of a loss [S, T] (or [S, 1] for a whole completion): a scalar."""
    if count == "whole":
        return per_token.squeeze(1).mean() if per_token.shape[1] == 1 else (per_token * mask).sum(dim=1).mean()
    weighed = per_token * mask
    if count == "completion":
        return (weighed.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
    return weighed.sum() / (mask.sum().clamp(min=1) if count == "token" else mask.shape[0] * longest)


def overlong(length: int, *, longest: int, last: int) -> float:
    """0 down to -1 over the last tokens of the longest completion (2503.14476, eq. 13)."""
    return 0.0 if last == 0 else max(-1.0, min(0.0, (longest - last - length) / last))
