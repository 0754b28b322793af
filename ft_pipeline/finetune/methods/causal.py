"""sft and cpt: the sum of negative log-likelihoods of the trained tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ft_pipeline.finetune.batches import Batch


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
