"""Activation checkpointing: a layer's activations are computed again in the backward pass, all of them or all but the dear ones.

The same numbers in the same order, so no bit of the weights changes; `full` costs one more forward pass of the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ft_pipeline.workers.job import Checkpointing

aten = torch.ops.aten
DEAR = (
    "mm", "addmm", "bmm",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
"""Operators whose outputs `selective` keeps: products of matrices and attention are nearly all of the arithmetic of a layer."""


def recompute(layers: list[torch.nn.Module], how: Checkpointing) -> None:
    """Makes layers forget; before a model is sharded. The random numbers of dropout are drawn again as they were."""
    if how == "none":
        return
    kept = [getattr(aten, name).default for name in DEAR if hasattr(aten, name)]
    options = {"context_fn": partial(create_selective_checkpoint_contexts, kept)} if how == "selective" else {}
    for layer in layers:
        layer.forward = partial(_forgetful, layer.forward, options)


def _forgetful(forward: Callable[..., Any], options: dict[str, Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **options, **named)
