"""Activation checkpointing: what a layer leaves for the backward pass is computed again, all of it or all but the dear part, or waits in host memory.

The same numbers in the same order, so no bit of the weights changes; `full` costs one more forward pass of the layers, `offload` their
way to the host and back on the stream that computes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ft_pipeline.workers.job import Checkpointing

aten = torch.ops.aten
PRODUCTS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default})
ATTENTION = frozenset(
    getattr(aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(aten, name)
)  # fmt: skip
"""With products of matrices nearly all of the arithmetic of a layer: what `selective` keeps."""
SMALL_ELEMENTS = 1024
"""Fewer are not worth a transfer."""


def recompute(layers: list[torch.nn.Module], how: Checkpointing) -> None:
    """Makes layers forget; before a model is sharded. The random numbers of dropout are drawn again as they were."""
    if how == "none":
        return
    for layer in layers:
        if how == "offload":
            layer.forward = partial(_lent, layer.forward)
            continue
        adapted = any(not parameter.requires_grad for parameter in layer.parameters())
        keep = partial(_kept, adapted)
        options = {"context_fn": partial(create_selective_checkpoint_contexts, keep)} if how == "selective" else {}
        layer.forward = partial(_forgetful, layer.forward, options)


def _forgetful(forward: Callable[..., Any], options: dict[str, Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **options, **named)


def _kept(adapted: bool, _context: Any, operator: Any, *inputs: Any, **_named: Any) -> CheckpointPolicy:
    """Of a layer with an adapter only products of frozen matrices: the adapter's, in float32, take more bytes than they save time."""
    dear = operator in ATTENTION or (operator in PRODUCTS and not (adapted and inputs[-1].requires_grad))
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


def _lent(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    with saved_tensors_hooks(_to_host, _back) if torch.is_grad_enabled() else nullcontext():
        return forward(*inputs, **named)


def _to_host(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.device, torch.Tensor]:
    """Weights stay where they are, and so does a view of one. Strides are kept: another layout is another kernel, which rounds otherwise."""
    owner = tensor if tensor._base is None else tensor._base
    if isinstance(owner, torch.nn.Parameter) or tensor.numel() < SMALL_ELEMENTS:
        return tensor
    there = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return tensor.device, there.copy_(tensor, non_blocking=True)


def _back(lent: torch.Tensor | tuple[torch.device, torch.Tensor]) -> torch.Tensor:
    if isinstance(lent, torch.Tensor):
        return lent
    device, there = lent
    return there.to(device, non_blocking=True)
