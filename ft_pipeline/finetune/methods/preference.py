"""dpo, simpo and orpo: the chosen answer of a pair is to become likelier than the rejected one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.methods.compared import (
    Compared,
    ComparedBatch,
    ComparedRows,
    compared_batch,
    compared_rows,
    row_log_probabilities,
)
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.methods.pair_losses import LOSSES, Pairs, PairsLoss, odds_ratio, simpo
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.recipe import Finetune, Preference
from ft_pipeline.store.artifacts import Artifact


@dataclass(frozen=True, kw_only=True)
class Preferred:
    """A method over pairs. A pair counts 1 in the mean of a step."""

    section: Preference
    losses: PairsLoss
    cache: Path
    reference: Artifact | None = None
    """Its `reference_logprobs`; None for a loss without a reference."""
    sft_weight: float = 0.0
    """Weight of the mean loss of a chosen token over the micro-batch."""
    by_token: bool = False
    """Rewards are mean log-probabilities, not sums."""

    def items(self, shards: Artifact, split: str) -> ComparedRows:
        """Pairs as windows of two rows."""
        return compared_rows(shards, split, cache=self.cache, reference=self.reference)

    def weight(self, _item: Compared) -> float:
        """A pair is a pair, however long."""
        return 1.0

    def batch(self, trainee: Trainee, items: Sequence[Compared]) -> ComparedBatch:
        """Chosen and rejected rows back to back, without padding on the flat road."""
        return compared_batch(trainee, items)

    def loss(self, trainee: Trainee, batch: ComparedBatch) -> Loss:
        """Summed losses of the pairs; facts by TRL's meaning."""
        pairs = _pairs(trainee.model, batch)
        total = self.losses(pairs, self.section).sum()
        if self.sft_weight:
            mean = -pairs.chosen.sum() / pairs.chosen_tokens.sum()
            total = total + self.sft_weight * mean * len(pairs.chosen)
        return Loss(total=total, facts=self._facts(pairs))

    def _facts(self, pairs: Pairs) -> dict[str, torch.Tensor]:
        """Rewards are beta x log-ratio (simpo, orpo: beta x mean log-probability), the implicit rewards of the papers."""
        won, lost = pairs.won.detach(), pairs.lost.detach()
        if self.by_token:
            won, lost = won / pairs.chosen_tokens, lost / pairs.rejected_tokens
        won, lost = self.section.beta * won, self.section.beta * lost
        return {
            "reward_chosen": won.sum(),
            "reward_rejected": lost.sum(),
            "margin": (won - lost).sum(),
            "accuracy": (won > lost).float().sum(),
            "logp_chosen": pairs.chosen.detach().sum(),
            "logp_rejected": pairs.rejected.detach().sum(),
        }


def method(section: Finetune, *, cache: Path, reference: Artifact | None = None, **_given: Any) -> Preferred:
    """dpo, simpo or orpo. Raises RecipeError without the section, or without the reference that dpo compares with."""
    chosen = section.preference
    if chosen is None or (section.method == "dpo" and reference is None):
        raise RecipeError(f"method {section.method} has no preference section or no reference log-probabilities")
    if section.method == "simpo":
        return Preferred(section=chosen, losses=simpo, cache=cache, sft_weight=chosen.sft_weight, by_token=True)
    if section.method == "orpo":
        return Preferred(section=chosen, losses=odds_ratio, cache=cache, sft_weight=1.0, by_token=True)
    losses = LOSSES[chosen.loss or "sigmoid"]
    return Preferred(section=chosen, losses=losses, cache=cache, reference=reference, sft_weight=chosen.sft_weight)


def _pairs(model: Any, batch: ComparedBatch) -> Pairs:
    logps = row_log_probabilities(model, batch.rows, batch.counts)
    counts = torch.tensor(batch.counts, dtype=torch.float32, device=logps.device)
    reference = torch.zeros(len(logps) // 2, 2, device=logps.device) if batch.reference is None else batch.reference
    return Pairs(
        chosen=logps[::2], rejected=logps[1::2],
        reference_chosen=reference[:, 0], reference_rejected=reference[:, 1],
        chosen_tokens=counts[::2], rejected_tokens=counts[1::2],
    )  # fmt: skip
