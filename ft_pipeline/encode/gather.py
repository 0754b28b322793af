"""Encoded rows in window order: gathered from the spilled blocks, which stay on disk. In memory only a few bytes a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.columns import edges, ragged
from ft_pipeline.encode.spill import read_block

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Spilled:
    """The encoded rows of a split. Memory: 8 bytes a row."""

    blocks: tuple[Path, ...]
    starts: np.ndarray
    """[blocks + 1] int64: number of the first row of each block."""
    lengths: np.ndarray
    """[rows] int32: tokens."""
    trained: np.ndarray
    """[rows] int32: trained tokens."""
    counts: Counter[str]
    reasons: Counter[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Some rows, one behind the other."""

    ids: np.ndarray
    """[tokens] int32."""
    lengths: np.ndarray
    """[rows] int32."""
    edges: np.ndarray
    """int32: start, end, ... of trained tokens, within their row."""
    num_edges: np.ndarray
    """[rows] int64."""
    row_ids: Any
    """Arrow strings."""
    pieces: np.ndarray
    """[rows] int32."""


def spilled(blocks: Sequence[Path]) -> Spilled:
    """The rows of finished blocks, in order."""
    import numpy as np

    lengths, trained = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for path in blocks:
        block = read_block(path)
        lengths.append(np.diff(block.starts).astype(np.int32))
        trained.append(_trained(block.edges, block.edge_starts))
        counts.update(block.facts["counts"])
        reasons.update(block.facts["reasons"])
    return Spilled(
        blocks=tuple(blocks), starts=edges(np.array([len(part) for part in lengths[1:]], np.int64)),
        lengths=np.concatenate(lengths), trained=np.concatenate(trained), counts=counts, reasons=reasons,
    )  # fmt: skip


def gather(split: Spilled, numbers: np.ndarray) -> Rows:
    """The rows of these numbers in this order. Each block is opened once; tokens go from the page cache to their place."""
    import numpy as np
    import pyarrow as pa

    home = np.searchsorted(split.starts, numbers, side="right") - 1
    by_block = np.argsort(home, kind="stable")
    lengths = split.lengths[numbers]
    ids, places = np.empty(int(lengths.sum(dtype=np.int64)), np.int32), edges(lengths)
    num_edges, pieces = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int32)
    parts, names = [np.zeros(0, np.int32)], [pa.array([], pa.string())]
    present, begins = np.unique(home[by_block], return_index=True)
    for number, mine in zip(present, np.split(by_block, begins[1:]), strict=False):
        block, rows = read_block(split.blocks[number]), numbers[mine] - split.starts[number]
        ids[ragged(places[mine], lengths[mine])] = block.ids[ragged(block.starts[rows], lengths[mine])]
        num_edges[mine] = block.edge_starts[rows + 1] - block.edge_starts[rows]
        parts.append(block.edges[ragged(block.edge_starts[rows], num_edges[mine])])
        pieces[mine] = block.pieces[rows]
        names.append(block.row_ids.take(pa.array(rows)))
    # by_block lists the rows as the parts hold them; its inverse puts them into window order
    inverse = np.argsort(by_block, kind="stable")
    sizes = num_edges[by_block]
    return Rows(
        ids=ids, lengths=lengths, num_edges=num_edges, pieces=pieces,
        edges=np.concatenate(parts)[ragged(edges(sizes)[inverse], num_edges)],
        row_ids=pa.concat_arrays(names).take(pa.array(inverse)),
    )  # fmt: skip


def _trained(spans: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Trained tokens of each row: the sum of (end - start) over its edges."""
    import numpy as np

    sums = edges(spans[1::2] - spans[::2])
    return (sums[starts[1:] // 2] - sums[starts[:-1] // 2]).astype(np.int32)
