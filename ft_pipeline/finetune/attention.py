"""Exact attention inside each row of a packed batch without a mask: rows of like length are stacked and run causally.

A dense block mask costs W^2 per window however short its rows are (design note curate-encode: one packed 4,096 2.8 s on a CPU,
16 x 256 .66 s). Padding behind a row is never attended to by its real tokens, because attention is causal. On CUDA in bfloat16 or
float16 the rows go to torch's variable-length kernel (FlashAttention) as they lie, and nothing is stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ft_pipeline.errors import TrainingFailed

NAME = "ft_segments"
SHORTEST = 0.75
"""A stack holds rows down to this share of its longest: at most a quarter of it is padding."""
SHORTEST_KERNEL = 128
"""The longest row is told to the kernel as a power of two from here: a compiled step sees few values of it."""
FLASH_CAPABILITY = (8, 0)
"""Compute capability from which torch carries FlashAttention 2 (Ampere)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacks:
    """How a flat batch of T tokens is laid out as stacks of rows of like length, P places with padding."""

    shapes: tuple[tuple[int, int], ...]
    """(rows, width) of each."""
    gather: torch.Tensor
    """[P] token that each place holds; padding places hold token 0."""
    place: torch.Tensor
    """[T] place of each token."""


class Segments:
    """The rows of a flat batch, back to back: what an attention needs to keep them apart. Each form is made when it is asked for."""

    def __init__(self, lengths: Sequence[int], device: str = "cpu") -> None:
        self.lengths, self.device = tuple(lengths), device

    @cached_property
    def stacks(self) -> Stacks:
        """Rows of like length side by side."""
        return _stacks(self.lengths, self.device)

    @cached_property
    def edges(self) -> torch.Tensor:
        """[rows + 1] int32: where each row starts, and the end (cu_seqlens)."""
        return torch.from_numpy(np.cumsum([0, *self.lengths]).astype(np.int32)).to(self.device)

    @property
    def longest(self) -> int:
        """The length of the longest row, rounded up to a power of two."""
        return max(SHORTEST_KERNEL, 1 << (max(self.lengths) - 1).bit_length())


def plan_segments(lengths: Sequence[int], *, device: str = "cpu") -> Segments:
    """The rows with these lengths, with the form made that their device will ask for."""
    segments = Segments(lengths, device)
    _ = segments.stacks if torch.device(device).type == "cpu" else segments.edges
    return segments


def _stacks(lengths: Sequence[int], device: str) -> Stacks:
    starts = np.cumsum([0, *lengths[:-1]])
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    shapes, gathers = [], []
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
        shapes.append((len(rows), width))
        gathers.append(gather.reshape(-1))
    whole = torch.from_numpy(np.concatenate(gathers)).to(device)
    return Stacks(shapes=tuple(shapes), gather=whole, place=torch.from_numpy(place).to(device))


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
    if kernel := varlen_kernel(tensors[0], dropout):
        return by_varlen(tensors[:3], segments, scale=options.get("scaling"), kernel=kernel), None
    return _by_stacks(tensors[:3], segments.stacks, scale=options.get("scaling"), dropout_p=dropout), None


def varlen_kernel(query: torch.Tensor, dropout: float) -> Callable[..., Any] | None:
    """torch's variable-length attention where it runs: CUDA from Ampere, 16 bits, no dropout on the scores (it has none)."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16) or dropout:
        return None
    if torch.cuda.get_device_capability(query.device) < FLASH_CAPABILITY:
        return None
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def by_varlen(
    tensors: Sequence[torch.Tensor], segments: Segments, *, scale: float | None, kernel: Callable[..., Any]
) -> torch.Tensor:
    """[1, T, heads, head_dim] by a kernel with the arguments of torch.nn.attention.varlen.varlen_attn (torch 2.13)."""
    query, key, value = (t[0].transpose(0, 1) for t in tensors)
    made = kernel(
        query, key, value, segments.edges, segments.edges, segments.longest, segments.longest,
        scale=scale, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return made[None]


def _by_stacks(tensors: Sequence[torch.Tensor], stacks: Stacks, **settings: Any) -> torch.Tensor:
    settings |= {"is_causal": True, "enable_gqa": tensors[0].shape[1] != tensors[1].shape[1]}
    sizes = [rows * width for rows, width in stacks.shapes]
    spread = [_Spread.apply(t[0].transpose(0, 1), stacks).split(sizes) for t in tensors]
    parts = [_stack(shape, [part[n] for part in spread], settings) for n, shape in enumerate(stacks.shapes)]
    return _Collect.apply(torch.cat(parts), stacks)[None]


def _stack(shape: tuple[int, int], parts: Sequence[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    """[rows * width, heads, head_dim] of one stack; `parts` are query, key, value of that shape."""
    query, key, value = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
    return scaled_dot_product_attention(query, key, value, **settings).transpose(1, 2).flatten(0, 1)


class _Spread(torch.autograd.Function):
    """[T, ...] tokens into [P, ...] places. Written out because the backward of an index is a slow scatter-add: here it is an index."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, stacks: Stacks) -> torch.Tensor:
        ctx.stacks = stacks
        return tokens.index_select(0, stacks.gather)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        # a padding place is never attended to and its own output is dropped: its gradient is 0
        return gradients[0].index_select(0, ctx.stacks.place), None


class _Collect(torch.autograd.Function):
    """[P, ...] places back into [T, ...] tokens, padding dropped."""

    @staticmethod
    def forward(ctx: Any, places: torch.Tensor, stacks: Stacks) -> torch.Tensor:
        ctx.stacks = stacks
        return places.index_select(0, stacks.place)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = gradients[0].new_zeros((len(ctx.stacks.gather), *gradients[0].shape[1:]))
        return whole.index_copy_(0, ctx.stacks.place, gradients[0]), None


def fits(config: Any) -> bool:
    """True when every layer of the model attends to the whole row and nothing else: no windows, no soft caps, no sinks."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    special = ("attn_logit_softcapping", "attention_chunk_size", "sinks")
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not windowed and not any(getattr(config, name, None) for name in special)
