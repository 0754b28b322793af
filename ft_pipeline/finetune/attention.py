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
class Segments:
    """How a flat batch of T tokens is laid out as stacks of rows of like length, P places with padding."""

    stacks: tuple[tuple[int, int], ...]
    """(rows, width) of each."""
    gather: torch.Tensor
    """[P] token that each place holds; padding places hold token 0."""
    place: torch.Tensor
    """[T] place of each token."""


def plan_segments(lengths: Sequence[int], *, device: str = "cpu") -> Segments:
    """The stacks of rows that lie back to back with these lengths."""
    starts = np.cumsum([0, *lengths[:-1]])
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    stacks, gathers = [], []
    place, filled = np.zeros(sum(lengths), np.int64), 0
    while by_length:
        width = lengths[by_length[0]]
        rows = [row for row in by_length if lengths[row] >= SHORTEST * width]
        by_length = by_length[len(rows) :]
        gather = np.zeros((len(rows), width), np.int64)
        real = np.arange(width)[None] < np.array([lengths[row] for row in rows])[:, None]
        gather[real] = np.concatenate([np.arange(starts[row], starts[row] + lengths[row]) for row in rows])
        place[gather[real]] = filled + np.flatnonzero(real)
        filled += gather.size
        stacks.append((len(rows), width))
        gathers.append(gather.reshape(-1))
    whole = torch.from_numpy(np.concatenate(gathers)).to(device)
    return Segments(stacks=tuple(stacks), gather=whole, place=torch.from_numpy(place).to(device))


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
    settings = {"scale": options.get("scaling"), "dropout_p": options.get("dropout", 0.0), "is_causal": True}
    settings["enable_gqa"] = tensors[0].shape[1] != tensors[1].shape[1]
    sizes = [rows * width for rows, width in segments.stacks]
    spread = [_Spread.apply(t[0].transpose(0, 1), segments).split(sizes) for t in tensors[:3]]
    parts = [_stack(shape, [part[n] for part in spread], settings) for n, shape in enumerate(segments.stacks)]
    return _Collect.apply(torch.cat(parts), segments)[None], None


def _stack(shape: tuple[int, int], parts: Sequence[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    """[rows * width, heads, head_dim] of one stack; `parts` are query, key, value of that shape."""
    query, key, value = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
    return scaled_dot_product_attention(query, key, value, **settings).transpose(1, 2).flatten(0, 1)


class _Spread(torch.autograd.Function):
    """[T, ...] tokens into [P, ...] places. Written out because the backward of an index is a slow scatter-add: here it is an index."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, segments: Segments) -> torch.Tensor:
        ctx.segments = segments
        return tokens.index_select(0, segments.gather)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        # a padding place is never attended to and its own output is dropped: its gradient is 0
        return gradients[0].index_select(0, ctx.segments.place), None


class _Collect(torch.autograd.Function):
    """[P, ...] places back into [T, ...] tokens, padding dropped."""

    @staticmethod
    def forward(ctx: Any, places: torch.Tensor, segments: Segments) -> torch.Tensor:
        ctx.segments = segments
        return places.index_select(0, segments.place)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = gradients[0].new_zeros((len(ctx.segments.gather), *gradients[0].shape[1:]))
        return whole.index_copy_(0, ctx.segments.place, gradients[0]), None


def fits(config: Any) -> bool:
    """True when every layer of the model attends to the whole row and nothing else: no windows, no soft caps, no sinks."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    special = ("attn_logit_softcapping", "attention_chunk_size", "sinks")
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not windowed and not any(getattr(config, name, None) for name in special)
