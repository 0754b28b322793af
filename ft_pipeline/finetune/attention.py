"""Exact attention inside each row of a packed batch without a mask: rows of like length are stacked and run causally.

A dense block mask costs W^2 per window however short its rows are (design note curate-encode: one packed 4,096 2.8 s on a CPU,
16 x 256 .66 s). Padding behind a row is never attended to by its real tokens, because attention is causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ft_pipeline.errors import TrainingFailed

NAME = "ft_segments"
SHORTEST = 0.75
"""A stack holds rows down to this share of its longest: at most a quarter of it is padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Rows of like length: `gather` [rows * width] places in the batch, `keep` those places of the stack that are real."""

    rows: int
    width: int
    gather: torch.Tensor
    keep: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """How a flat batch of T tokens is cut into stacks; `back` [T] brings the stacks' real tokens into batch order."""

    stacks: tuple[Stack, ...]
    back: torch.Tensor


def plan_segments(lengths: Sequence[int], *, device: str = "cpu") -> Segments:
    """The stacks of rows that lie back to back with these lengths."""
    starts = np.cumsum([0, *lengths[:-1]])
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    stacks, seen = [], []
    while by_length:
        width = lengths[by_length[0]]
        rows = [row for row in by_length if lengths[row] >= SHORTEST * width]
        by_length = by_length[len(rows) :]
        gather = np.zeros((len(rows), width), np.int64)
        real = np.arange(width)[None] < np.array([lengths[row] for row in rows])[:, None]
        gather[real] = np.concatenate([np.arange(starts[row], starts[row] + lengths[row]) for row in rows])
        seen.append(gather[real])
        stacks.append(
            Stack(
                rows=len(rows), width=width,
                gather=torch.from_numpy(gather.reshape(-1)).to(device),
                keep=torch.from_numpy(np.flatnonzero(real)).to(device),
            )
        )  # fmt: skip
    return Segments(stacks=tuple(stacks), back=torch.from_numpy(np.argsort(np.concatenate(seen))).to(device))


def register() -> None:
    """Makes `attn_implementation="ft_segments"` known to transformers, with no mask at all."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_args, **_options: None)


def attend(module: Any, *tensors: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """[1, T, heads, head_dim] for query, key, value [1, heads, T, head_dim]. Raises TrainingFailed without `segments`."""
    segments: Segments | None = options.get("segments")
    if segments is None:
        raise TrainingFailed(
            f"{type(module).__name__} does not hand row boundaries to its attention",
            why="Rows of one window would read each other.",
            cure="this model class needs the masked road: report it with the model's name",
        )
    dropout = options.get("dropout", 0.0)
    flat = [tensor[0].transpose(0, 1) for tensor in tensors[:3]]
    parts = [_stack(stack, flat, scale=options.get("scaling"), dropout_p=dropout) for stack in segments.stacks]
    return torch.cat(parts).index_select(0, segments.back)[None], None


def _stack(stack: Stack, flat: Sequence[torch.Tensor], **options: Any) -> torch.Tensor:
    """[real tokens, heads, head_dim] of one stack; `flat` are [T, heads, head_dim]."""
    query, key, value = (
        t.index_select(0, stack.gather).view(stack.rows, stack.width, *t.shape[1:]).transpose(1, 2) for t in flat
    )
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped, **options)
    return (
        out.transpose(1, 2)
        .reshape(stack.rows * stack.width, *out.shape[1:2], out.shape[-1])
        .index_select(0, stack.keep)
    )


def fits(config: Any) -> bool:
    """True when every layer of the model attends to the whole row and nothing else: no windows, no soft caps, no sinks."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    special = ("attn_logit_softcapping", "attention_chunk_size", "sinks")
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not windowed and not any(getattr(config, name, None) for name in special)
