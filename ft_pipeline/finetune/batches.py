"""Windows as tensors: rows back to back, positions that start anew at each row, and where the loss looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ft_pipeline.encode.artifact import Window
from ft_pipeline.finetune.attention import Segments, plan_segments


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One forward pass.

    `flat`: [1, T], all rows of all windows without padding, with `segments` for the attention. Else [B, W]: a window a line,
    padded behind, boundaries by position_ids alone.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predict: torch.Tensor
    """[N] places in the flattened batch whose next token is trained."""
    targets: torch.Tensor
    """[N] those next tokens."""
    segments: Segments | None
    tokens: int
    """Real tokens, padding excluded."""
    lengths: tuple[tuple[int, ...], ...] = ()
    """Of the rows of each window."""


def shared_batch_of(windows: Sequence[Window], *, device: str = "cpu") -> Batch:
    """The flat tensors of windows of two rows, where the tokens with which both rows of a window begin are computed once.

    The same losses as `batch_of` up to rounding, and of a pair with a long prompt nearly half the work.
    """
    origin, starts, kept = [], [], []
    begin = 0
    for window in windows:
        first, second = window.lengths
        common = _common(window.ids[:first], window.ids[first:])
        origin += [np.arange(first), np.arange(common), np.arange(second - common) + first]
        starts += [begin] * 3
        kept += [window.ids[:first], window.ids[first + common :]]
        begin += first + second - common
    whole = np.concatenate([part + start for part, start in zip(origin, starts, strict=True)])
    lengths = [n for window in windows for n in window.lengths]
    positions = np.zeros(begin, np.int64)
    positions[whole] = np.concatenate([np.arange(n) for n in lengths])
    offsets = np.cumsum([0, *(len(w.ids) for w in windows[:-1])])
    trained = np.concatenate([_trained(w) + offset for w, offset in zip(windows, offsets, strict=True)])
    ids = np.concatenate(kept).astype(np.int64)
    return Batch(
        input_ids=torch.from_numpy(ids[None]).to(device),
        position_ids=torch.from_numpy(positions[None]).to(device),
        predict=torch.from_numpy(whole[trained - 1]).to(device),
        targets=torch.from_numpy(ids[whole[trained]]).to(device),
        segments=plan_segments(lengths, device=device, origin=whole),
        tokens=begin,
    )


def batch_of(windows: Sequence[Window], *, flat: bool, device: str = "cpu") -> Batch:
    """The tensors of some windows. The head runs only on `predict`: chat rows train one token in five."""
    ids = [window.ids for window in windows]
    positions = [np.concatenate([np.arange(n) for n in window.lengths]) for window in windows]
    width = max(len(i) for i in ids)
    starts = np.cumsum([0, *(len(i) for i in ids[:-1])]) if flat else np.arange(len(ids)) * width
    trained = np.concatenate([_trained(w) + start for w, start in zip(windows, starts, strict=True)])
    if flat:
        lines, places = np.concatenate(ids)[None], np.concatenate(positions)[None]
    else:
        lines, places = _padded(ids, width), _padded(positions, width)
    segments = plan_segments([n for window in windows for n in window.lengths], device=device) if flat else None
    return Batch(
        input_ids=torch.from_numpy(lines.astype(np.int64)).to(device),
        position_ids=torch.from_numpy(places.astype(np.int64)).to(device),
        predict=torch.from_numpy(trained - 1).to(device),
        targets=torch.from_numpy(lines.reshape(-1)[trained].astype(np.int64)).to(device),
        segments=segments,
        tokens=sum(len(i) for i in ids),
        lengths=tuple(window.lengths for window in windows),
    )


def single_rows(window: Window) -> list[Window]:
    """The rows of a window, each as a window of its own."""
    rows, start = [], 0
    for length, row_id in zip(window.lengths, window.row_ids, strict=True):
        end = start + length
        spans = tuple((max(a, start) - start, min(b, end) - start) for a, b in window.spans if a < end and b > start)
        rows.append(Window(ids=window.ids[start:end], spans=spans, lengths=(length,), row_ids=(row_id,)))
        start = end
    return rows


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens with which both begin."""
    shorter = min(len(one), len(other))
    differ = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _trained(window: Window) -> np.ndarray:
    """Places of the trained tokens. Encode never marks the first token of a row, so the one before is of the same row."""
    return np.concatenate([np.arange(start, end) for start, end in window.spans] or [np.zeros(0, np.int64)])


def _padded(lines: Sequence[np.ndarray], width: int) -> np.ndarray:
    """[B, W] with zeros behind: position 0 makes every padding token a row of its own."""
    return np.stack([np.pad(line, (0, width - len(line))) for line in lines])
