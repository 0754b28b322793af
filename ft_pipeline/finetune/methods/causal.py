"""sft and cpt: the sum of negative log-likelihoods of the trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ft_pipeline.encode.artifact import Window, cached_windows
from ft_pipeline.finetune.batches import Batch, batch_of
from ft_pipeline.finetune.head import Question, loss_head
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.noise import noisy_embeddings
from ft_pipeline.recipe import Finetune
from ft_pipeline.store.artifacts import Artifact


class Causal:
    """Next-token prediction on packed windows."""

    def __init__(self, cache: Path, *, alpha: float = 0.0) -> None:
        """`cache`: folder in which windows are decoded once and then mapped, so that a dataset need not fit into memory.

        `alpha`: of the noise on the embeddings.
        """
        self.cache, self.alpha = cache, alpha

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
        with noisy_embeddings(trainee.model, batch, alpha=self.alpha):
            return Loss(total=loss_sum(trainee.model, batch))


def method(section: Finetune, *, cache: Path, **_given: Any) -> Causal:
    """sft and cpt."""
    return Causal(cache, alpha=section.neftune_alpha)


def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Summed NLL in nats over `batch.predict`: a scalar with gradient. The caller divides by the step's trained tokens."""
    return _answer(model, batch, summed=True)


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """[N] NLL of each trained token, with gradient."""
    return _answer(model, batch, summed=False)


def _answer(model: Any, batch: Batch, *, summed: bool) -> torch.Tensor:
    """By the model's own head, without logits (head.py); by logits where the model has a head of another kind."""
    if head := loss_head(model):
        with head.asked(Question(predict=batch.predict, targets=batch.targets, summed=summed)):
            return _called(model, batch)
    logits = _called(model, batch).flatten(0, 1).index_select(0, batch.predict)
    losses = cross_entropy(logits.float(), batch.targets, reduction="none")
    return losses.sum() if summed else losses


def _called(model: Any, batch: Batch) -> torch.Tensor:
    """What the head gives. attention_mask None and use_cache False: anything else leaks between rows (design note, Boundary)."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": None,
        "use_cache": False,
    }
    if batch.segments is not None:
        inputs["segments"] = batch.segments
    return model(**inputs).logits
