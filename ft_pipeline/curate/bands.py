"""Candidate pairs: rows whose signatures agree in at least one band. Each band can be searched by another process.

Every candidate is to be verified by exact Jaccard: a 128-wide estimate has an error of 3 points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ft_pipeline.curate.signatures import PERMUTATIONS

RECALL = 0.9989
"""Wanted share of the pairs at the threshold that become candidates: .99895 with (14, 9) at 0.9."""
NEIGHBOURS = 4
"""Rows of a bucket that each row is compared with at least, besides the bucket's first."""
PAIRS_PER_BAND = 1 << 18
"""Below so many pairs, or four a row, a band compares all rows of each bucket: complete for all but template-dense sets
(T0: 6,094 of 6,094 pairs)."""
PAIRS_PER_ROW = 4
CALL_PAIRS = 1 << 16

Signed = Callable[[np.ndarray], np.ndarray]
"""Positions -> their signatures, [positions, 128]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bands:
    """The cut of a signature: `count` bands of `rows` permutations."""

    count: int
    rows: int


def bands_for(threshold: float, *, recall: float = RECALL) -> Bands:
    """The widest bands that find a pair at the threshold with the recall: 1 - (1 - t^r)^b. (14, 9) at 0.9."""
    for rows in range(PERMUTATIONS, 0, -1):
        for count in range(1, PERMUTATIONS // rows + 1):
            if 1 - (1 - threshold**rows) ** count >= recall:
                return Bands(count=count, rows=rows)
    raise ValueError(f"no bands of {PERMUTATIONS} permutations find pairs at {threshold} with recall {recall}")


def band_keys(signed: np.ndarray, bands: Bands) -> np.ndarray:
    """[bands, rows] uint64: rows with equal keys agree in the band. Two that differ and collide only cost a comparison."""
    made = np.zeros((bands.count, len(signed)), np.uint64)
    for band, keys in enumerate(made):
        for column in signed[:, band * bands.rows : (band + 1) * bands.rows].T:
            keys ^= column
            keys *= np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
    return made


def band_pairs(keys: np.ndarray, signed: Signed, *, at_least: float) -> np.ndarray:
    """Sorted pairs of one band as left * rows + right, left < right, whose estimated Jaccard is at least so much.

    Compares all rows of a bucket while the band stays below its budget of pairs; beyond, each row with the bucket's first and with
    the four before it. Texts sorted by length lie beside near-equal ones, so a bucket of thousands costs a line, not a square.
    """
    total = len(keys)
    pairs = np.sort(np.concatenate([np.empty(0, np.int64), *_bucket_pairs(keys)]))
    # a pair can come twice: from its bucket's first row and as neighbours
    pairs = pairs[np.r_[True, pairs[1:] != pairs[:-1]][: len(pairs)]]
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(pairs), CALL_PAIRS):
        part = pairs[start : start + CALL_PAIRS]
        left, right = np.divmod(part, max(total, 1))
        used = np.unique(np.concatenate([left, right]))
        lines = signed(used)
        same = lines[np.searchsorted(used, left)] == lines[np.searchsorted(used, right)]
        parts.append(part[same.mean(axis=1) >= at_least])
    return np.concatenate(parts)


def merged(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of all bands once each, sorted, and the first band that has each."""
    pairs, first = np.unique(np.concatenate([np.empty(0, np.int64), *found]), return_index=True)
    ends = np.cumsum([len(part) for part in found])
    return pairs, np.searchsorted(ends, first, side="right").astype(np.int16)


def _bucket_pairs(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs from each bucket of equal keys."""
    total = len(keys)
    budget = max(PAIRS_PER_BAND, PAIRS_PER_ROW * total)
    order = np.argsort(keys, kind="stable")
    placed = keys[order]
    near, distance, made = np.arange(max(total - 1, 0)), 0, 0
    while len(near) and (distance < NEIGHBOURS or made < budget):
        distance += 1
        near = near[near < total - distance]
        near = near[placed[near] == placed[near + distance]]
        made += len(near)
        yield _pairs(order[near], order[near + distance], total)
    starts = np.r_[True, placed[1:] != placed[:-1]][:total]
    first = np.maximum.accumulate(np.where(starts, np.arange(total), 0)) if total else np.empty(0, np.int64)
    far = np.flatnonzero(np.arange(total) - first > distance)
    yield _pairs(order[first[far]], order[far], total)


def _pairs(left: Any, right: Any, total: int) -> np.ndarray:
    return np.minimum(left, right).astype(np.int64) * total + np.maximum(left, right)
