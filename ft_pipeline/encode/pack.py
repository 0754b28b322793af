"""Which rows share a window: best-fit-decreasing in blocks of 10,000 after a seeded shuffle.

Measured (design note curate-encode, 1M lengths, cap 4096): 99.7-99.9% full in about 1 s; next-fit 91-98%. Blocks keep long and
short rows mixed, which one global sort does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BLOCK_ROWS = 10_000


def pack(lengths: Sequence[int], *, window_tokens: int, seed: int, block_rows: int = BLOCK_ROWS) -> list[list[int]]:
    """Windows of row indices: every row exactly once, no window above `window_tokens`. The same inputs give the same windows.

    Raises ValueError for a length below 1 or above `window_tokens`: such rows are rejected or truncated before.
    """
    if bad := [n for n in lengths if not 1 <= n <= window_tokens]:
        raise ValueError(f"row of {bad[0]} tokens does not fit a window of {window_tokens}")
    windows: list[list[int]] = []
    for block in _blocks(len(lengths), seed, block_rows):
        windows += _best_fit_decreasing(block, lengths, window_tokens)
    return windows


def fill(lengths: Sequence[int], windows: Sequence[Sequence[int]], *, window_tokens: int) -> float:
    """Share of the windows' tokens that are rows, 0 to 1."""
    return sum(lengths) / (len(windows) * window_tokens) if windows else 0.0


def _blocks(num_rows: int, seed: int, block_rows: int) -> Iterator[list[int]]:
    import numpy as np

    order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(num_rows).tolist()
    for start in range(0, num_rows, block_rows):
        yield order[start : start + block_rows]


def _best_fit_decreasing(block: list[int], lengths: Sequence[int], window_tokens: int) -> list[list[int]]:
    """Longest row first, each into the fullest window that still has room.

    `rooms` is a bit set: bit r is on when some window has r free tokens, so the best fit is the lowest bit at or above the length.
    """
    windows: list[list[int]] = []
    waiting: list[list[int]] = [[] for _ in range(window_tokens + 1)]
    rooms = 0
    for row in sorted(block, key=lambda r: -lengths[r]):
        length = lengths[row]
        if above := rooms >> length:
            free = length + (above & -above).bit_length() - 1
            window = waiting[free].pop()
            if not waiting[free]:
                rooms &= ~(1 << free)
        else:
            free, window = window_tokens, len(windows)
            windows.append([])
        windows[window].append(row)
        waiting[free - length].append(window)
        rooms |= 1 << (free - length)
    return windows
