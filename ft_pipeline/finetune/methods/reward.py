"""reward: a scalar for each answer, so that chosen ones score above rejected ones (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from ft_pipeline.finetune.batches import Batch, batch_of
from ft_pipeline.finetune.methods.compared import Compared, ComparedRows, compared_rows
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.score import scores
from ft_pipeline.recipe import Finetune, RewardModel
from ft_pipeline.store.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredBatch:
    """Pairs, and where the last token of each of their rows is."""

    rows: Batch
    ends: torch.Tensor
    """[2n] places in the flattened batch: chosen, rejected, chosen, ..."""
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Rewarding:
    """-log sigmoid(chosen - rejected), by pair. A pair counts 1 in the mean of a step."""

    section: RewardModel
    cache: Path

    def items(self, shards: Artifact, split: str) -> ComparedRows:
        """Pairs as windows of two rows."""
        return compared_rows(shards, split, cache=self.cache)

    def weight(self, _item: Compared) -> float:
        """A pair is a pair."""
        return 1.0

    def batch(self, trainee: Trainee, items: Sequence[Compared]) -> ScoredBatch:
        """Rows back to back. The score is read at the last token, as a sequence classifier of transformers reads it."""
        rows = batch_of(items, flat=trainee.flat, device=trainee.device)
        width = rows.input_ids.shape[1]
        starts = (
            accumulate((sum(i.lengths) for i in items[:-1]), initial=0)
            if trainee.flat
            else range(0, width * len(items), width)
        )
        ends = [
            start + place - 1 for start, item in zip(starts, items, strict=True) for place in accumulate(item.lengths)
        ]
        return ScoredBatch(rows=rows, ends=torch.tensor(ends, device=trainee.device), tokens=rows.tokens)

    def loss(self, trainee: Trainee, batch: ScoredBatch) -> Loss:
        """Summed losses of the pairs."""
        found = scores(trainee.model, batch.rows, batch.ends)
        chosen, rejected = found[::2], found[1::2]
        losses = -logsigmoid(chosen - rejected)
        if self.section.center_weight:
            losses = losses + self.section.center_weight * (chosen + rejected) ** 2
        won, lost = chosen.detach(), rejected.detach()
        facts = {
            "reward_chosen": won.sum(),
            "reward_rejected": lost.sum(),
            "margin": (won - lost).sum(),
            "accuracy": (won > lost).float().sum(),
        }
        return Loss(total=losses.sum(), facts=facts)


def method(section: Finetune, *, cache: Path, **_given: Any) -> Rewarding:
    """reward."""
    return Rewarding(section=section.reward or RewardModel(), cache=cache)
