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
class Layout:
    """Where the T tokens of a flat batch go before attention: to P places, a shared token to several of them."""

    gather: torch.Tensor
    """[P] token that each place holds; padding places hold token 0."""
    place: torch.Tensor
    """[T] place of each token, the first one of a shared token: its attention is read there."""
    shared: torch.Tensor | None = None
    """[S] tokens that have a second place; None when no token is shared."""
    again: torch.Tensor | None = None
    """[S] that place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacks(Layout):
    """A layout as stacks of rows of like length, padding included."""

    shapes: tuple[tuple[int, int], ...]
    """(rows, width) of each."""


class Segments:
    """The rows of a flat batch, back to back: what an attention needs to keep them apart. Each form is made when it is asked for.

    Two rows that begin alike may share the tokens of their beginning: what is computed of a token is the same in both, because attention
    is causal. Then the model computes it once, and attention alone sees whole rows.
    """

    def __init__(self, lengths: Sequence[int], device: str = "cpu", origin: np.ndarray | None = None) -> None:
        """lengths: of the whole rows. origin: [their sum] token of the flat batch at each of their places; None when no token is shared."""
        self.lengths, self.device, self.origin = tuple(lengths), device, origin

    @cached_property
    def stacks(self) -> Stacks:
        """Rows of like length side by side."""
        shapes, places = _stacked(self.lengths)
        held = np.zeros(sum(rows * width for rows, width in shapes), np.int64)
        held[places] = np.arange(len(places)) if self.origin is None else self.origin
        return Stacks(shapes=shapes, **self._laid(held, places))

    @cached_property
    def rows(self) -> Layout | None:
        """The whole rows back to back; None where the tokens lie so already."""
        return None if self.origin is None else Layout(**self._laid(self.origin, np.arange(len(self.origin))))

    def _laid(self, held: np.ndarray, places: np.ndarray) -> dict[str, Any]:
        """Fields of a Layout. held: [P] token of each place; places: that of each token of the whole rows."""
        made = {"gather": held, "place": places}
        if self.origin is not None:
            tokens, first = np.unique(self.origin, return_index=True)
            again = np.setdiff1d(np.arange(len(self.origin)), first, assume_unique=True)
            made |= {"place": places[first], "shared": self.origin[again], "again": places[again]}
            assert len(tokens) == tokens[-1] + 1, "every token is in a row"
        return {name: torch.from_numpy(value).to(self.device) for name, value in made.items()}

    @cached_property
    def edges(self) -> torch.Tensor:
        """[rows + 1] int32: where each row starts, and the end (cu_seqlens)."""
        return torch.from_numpy(np.cumsum([0, *self.lengths]).astype(np.int32)).to(self.device)

    @property
    def longest(self) -> int:
        """The length of the longest row, rounded up to a power of two."""
        return max(SHORTEST_KERNEL, 1 << (max(self.lengths) - 1).bit_length())


def plan_segments(lengths: Sequence[int], *, device: str = "cpu", origin: np.ndarray | None = None) -> Segments:
    """The rows with these lengths, with the form made that their device will ask for. origin: of shared tokens, see Segments."""
    segments = Segments(lengths, device, origin)
    _ = segments.stacks if torch.device(device).type == "cpu" else (segments.edges, segments.rows)
    return segments


def _stacked(lengths: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], np.ndarray]:
    """(rows, width) of each stack, and [tokens] place of each token."""
    starts = np.cumsum([0, *lengths[:-1]])
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    shapes = []
    place, filled = np.zeros(sum(lengths), np.int64), 0
    while by_length:
        width = lengths[by_length[0]]
        rows = [row for row in by_length if lengths[row] >= SHORTEST * width]
        by_length = by_length[len(rows) :]
        for number, row in enumerate(rows):
            place[starts[row] : starts[row] + lengths[row]] = np.arange(lengths[row]) + filled + number * width
        filled += len(rows) * width
        shapes.append((len(rows), width))
    return tuple(shapes), place


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
    layout = segments.rows
    lying = (t[0].transpose(0, 1) for t in tensors)
    query, key, value = lying if layout is None else (_Spread.apply(t, layout) for t in lying)
    made = kernel(
        query, key, value, segments.edges, segments.edges, segments.longest, segments.longest,
        scale=scale, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return (made if layout is None else _Collect.apply(made, layout))[None]


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
    def forward(ctx: Any, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return tokens.index_select(0, layout.gather)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        # a padding place is never attended to and its own output is dropped: its gradient is 0
        found = gradients[0].index_select(0, ctx.layout.place)
        if ctx.layout.shared is not None:
            # each token once: no two sums meet, so their order cannot matter
            found.index_add_(0, ctx.layout.shared, gradients[0].index_select(0, ctx.layout.again))
        return found, None


class _Collect(torch.autograd.Function):
    """[P, ...] places back into [T, ...] tokens; padding and the second places of shared tokens are dropped."""

    @staticmethod
    def forward(ctx: Any, places: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return places.index_select(0, layout.place)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = gradients[0].new_zeros((len(ctx.layout.gather), *gradients[0].shape[1:]))
        return whole.index_copy_(0, ctx.layout.place, gradients[0]), None


def fits(config: Any) -> bool:
    """True when every layer of the model attends to the whole row and nothing else: no windows, no soft caps, no sinks."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    special = ("attn_logit_softcapping", "attention_chunk_size", "sinks")
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not windowed and not any(getattr(config, name, None) for name in special)
