"""sft and cpt: the sum of negative log-likelihoods of the trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ft_pipeline.encode.artifact import Window, cached_windows
from ft_pipeline.finetune.batches import Batch, batch_of
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.recipe import Finetune
from ft_pipeline.store.artifacts import Artifact


class Causal:
    """Next-token prediction on packed windows."""

    def __init__(self, cache: Path) -> None:
        """`cache`: folder in which windows are decoded once and then mapped, so that a dataset need not fit into memory."""
        self.cache = cache

    def items(self, shards: Artifact, split: str) -> Sequence[Window]:
        """The windows of a split."""
        return cached_windows(shards, split, self.cache)

    def weight(self, item: Window) -> float:
        """Trained tokens."""
        return item.trained_tokens

    def batch(self, trainee: Trainee, items: Sequence[Window]) -> Batch:
        """See batches.batch_of."""
        return batch_of(items, flat=trainee.flat, device=trainee.device)

    def loss(self, trainee: Trainee, batch: Batch) -> Loss:
        """Summed NLL in nats."""
        return Loss(total=loss_sum(trainee.model, batch))


def method(_section: Finetune, *, cache: Path, **_given: Any) -> Causal:
    """sft and cpt."""
    return Causal(cache)


def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Summed NLL in nats over `batch.predict`: a scalar with gradient. The caller divides by the step's trained tokens."""
    return token_losses(model, batch).sum()


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """[N] NLL of each trained token."""
    return cross_entropy(_logits(model, batch).float(), batch.targets, reduction="none")


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    """[N, vocabulary]. attention_mask None and use_cache False: anything else leaks between rows (design note, Boundary)."""
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": None,
        "use_cache": False,
    }
    if batch.segments is not None:
        return model(**inputs, segments=batch.segments, logits_to_keep=batch.predict).logits[0]
    return model(**inputs).logits.flatten(0, 1).index_select(0, batch.predict)
