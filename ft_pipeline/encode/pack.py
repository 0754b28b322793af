"""Which rows share a window: best-fit-decreasing in blocks of 10,000 after a seeded shuffle.

Blocks keep long and short rows mixed, which one global sort does not. Works on runs of equal lengths, not on rows: 1 M rows
take 0.3-0.6 s on one core, windows 99.7-99.9% full (cap 4096; design note curate-encode: TRL's bfd in batches of 1,000
98.3-99.5%, next-fit 91-98%).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BLOCK_ROWS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Windows of rows as two flat arrays: window w holds the rows `order[offsets[w]:offsets[w + 1]]`, the longest first."""

    order: np.ndarray
    """[rows] int64: every row number once."""
    offsets: np.ndarray
    """[windows + 1] int64."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for start, end in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            yield self.order[start:end].tolist()


def pack(
    lengths: Sequence[int] | np.ndarray, *, window_tokens: int, seed: int, block_rows: int = BLOCK_ROWS
) -> Packing:
    """Windows of row numbers: every row exactly once, no window above `window_tokens`. The same lengths give the same windows.

    Raises ValueError for a length below 1 or above `window_tokens`: such rows are rejected, cut or split before.
    """
    import numpy as np

    sizes = np.asarray(lengths).reshape(-1)
    if len(bad := sizes[(sizes < 1) | (sizes > window_tokens)]):
        raise ValueError(f"row of {bad[0]} tokens does not fit a window of {window_tokens}")
    order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(sizes))
    counts = [np.zeros(1, np.int64)]
    # blocks of nearly equal size: a last block of a few rows would leave its windows empty
    for block in np.array_split(order, max(1, -(-len(order) // block_rows))) if len(order) else ():
        block[:], rows = _packed(block, sizes[block], window_tokens)
        counts.append(rows)
    return Packing(order=order, offsets=np.cumsum(np.concatenate(counts)))


def fill(lengths: Sequence[int] | np.ndarray, packing: Packing, *, window_tokens: int) -> float:
    """Share of the windows' tokens that are rows, 0 to 1."""
    import numpy as np

    return float(np.sum(lengths)) / (len(packing) * window_tokens) if len(packing) else 0.0


def _packed(block: np.ndarray, sizes: np.ndarray, window_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The block's rows window by window, and the number of rows of each window."""
    import numpy as np

    # 16-bit keys: numpy sorts them by radix, 5x faster than 64-bit ones
    falling = np.argsort((window_tokens - sizes).astype(np.min_scalar_type(window_tokens)), kind="stable")
    distinct, counts = np.unique(sizes, return_counts=True)
    windows, repeats = _best_fit_decreasing(distinct[::-1].tolist(), counts[::-1].tolist(), window_tokens)
    homes = np.repeat(windows, repeats)
    by_window = np.argsort(homes.astype(np.min_scalar_type(len(block))), kind="stable")
    return block[falling[by_window]], np.bincount(homes)


def _best_fit_decreasing(lengths: list[int], counts: list[int], window_tokens: int) -> tuple[list[int], list[int]]:
    """Longest rows first, each into the fullest window that still has room: window numbers, and how many rows each takes.

    `rooms` is a bit set: bit r is on when some window has r free tokens, so the best fit is the lowest bit at or above the
    length. Rows of one length fill that window on, because what it has left stays the smallest room that fits them.
    """
    homes: list[int] = []
    takes: list[int] = []
    waiting: dict[int, list[int]] = {}
    rooms = made = 0
    for length, left in zip(lengths, counts, strict=True):
        while left:
            above = rooms >> length
            free = length + (above & -above).bit_length() - 1 if above else window_tokens
            each = free // length
            wanted = -(-left // each)
            if above:
                chosen, rooms = _taken(waiting, wanted, (free, rooms))
            else:
                chosen = list(range(made, made + wanted))
                made += wanted
            last = min(each, left - each * (len(chosen) - 1))
            homes += chosen
            takes += [each] * (len(chosen) - 1) + [last]
            left -= each * (len(chosen) - 1) + last
            for room, some in ((free - each * length, chosen[:-1]), (free - last * length, chosen[-1:])):
                if some:
                    waiting.setdefault(room, []).extend(some)
                    rooms |= 1 << room
    return homes, takes


def _taken(waiting: dict[int, list[int]], wanted: int, place: tuple[int, int]) -> tuple[list[int], int]:
    """At most `wanted` of the windows with `free` tokens, and the bit set without `free` when none is left."""
    free, rooms = place
    there = waiting[free]
    chosen = there[-wanted:]
    del there[-wanted:]
    return chosen, rooms if there else rooms & ~(1 << free)
