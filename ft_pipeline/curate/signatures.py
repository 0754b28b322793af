"""MinHash signatures and candidate pairs: which of many texts may be near-equal, in about 40 microseconds a text.

128 permutations over character 5-grams, bit for bit what datasketch computes (scheme affine32, seed 1), in numpy. Banding by
sorting; every candidate is to be verified by exact Jaccard, because a 128-wide estimate has an error of 3 points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

PERMUTATIONS = 128
SHINGLE = 5
SEED = 1
RECALL = 0.9989
"""Wanted share of the pairs at the threshold that become candidates: .99895 with (14, 9) at 0.9."""
CALL_CHARACTERS = 1 << 15
"""Characters of one kernel call: its arrays stay in the processor's cache."""
NEIGHBOURS = 16
"""Rows of a bucket that each row is compared with at least, besides the bucket's first."""
PAIRS_PER_BAND = 1 << 18
"""Below so many pairs a band compares all rows of each bucket: complete for small sets (T0: 6,094 of 6,094 pairs)."""
MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bands:
    """The cut of a signature: `count` bands of `rows` permutations."""

    count: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Pairs of positions, left < right, the most alike first, with the band that brought them together."""

    left: np.ndarray
    right: np.ndarray
    band: np.ndarray


def bands_for(threshold: float, *, recall: float = RECALL) -> Bands:
    """The widest bands that find a pair at the threshold with the recall: 1 - (1 - t^r)^b. (14, 9) at 0.9."""
    for rows in range(PERMUTATIONS, 0, -1):
        for count in range(1, PERMUTATIONS // rows + 1):
            if 1 - (1 - threshold**rows) ** count >= recall:
                return Bands(count=count, rows=rows)
    raise ValueError(f"no bands of {PERMUTATIONS} permutations find pairs at {threshold} with recall {recall}")


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Signatures as [texts, 128] uint32."""
    out = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for start, stop in _calls(texts):
        out[start:stop] = _kernel(texts[start:stop])
    return out


def candidates(signed: np.ndarray, bands: Bands, *, at_least: float) -> Candidates:
    """Pairs that share a band and whose estimated Jaccard is at least so much.

    Compares all rows of a bucket while a band stays below 262,144 pairs; beyond, each row with the bucket's first and with the 16
    before it. Texts sorted by length lie beside near-equal ones, so that a bucket of thousands costs a line, not a square.
    """
    total = len(signed)
    known = np.empty(0, np.int64)
    known_band = np.empty(0, np.int16)
    known_estimate = np.empty(0, np.float64)
    for band in range(bands.count):
        keys = _band_keys(signed[:, band * bands.rows : (band + 1) * bands.rows])
        pairs = np.sort(np.concatenate([*_bucket_pairs(keys)]))
        # a pair can come twice: from its bucket's first row and as neighbours
        pairs = pairs[np.r_[True, pairs[1:] != pairs[:-1]][: len(pairs)]]
        fresh = pairs[~np.isin(pairs, known, assume_unique=True)]
        estimate = _estimates(signed, fresh)
        fresh, estimate = fresh[estimate >= at_least], estimate[estimate >= at_least]
        known, known_estimate = np.concatenate([known, fresh]), np.concatenate([known_estimate, estimate])
        known_band = np.concatenate([known_band, np.full(len(fresh), band, np.int16)])
    order = np.lexsort((known, -known_estimate))
    left, right = np.divmod(known[order], max(total, 1))
    return Candidates(left=left, right=right, band=known_band[order])


def shingles(text: str) -> set[str]:
    """The distinct character 5-grams of a text; a shorter text is its own single one."""
    padded = text.ljust(SHINGLE, "\0")
    return {padded[i : i + SHINGLE] for i in range(len(padded) - SHINGLE + 1)}


def jaccard(left: set[str], right: set[str]) -> float:
    """Shared part of the union, exact."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A uint32 for every 5-gram of every text, repeats included, one text after the other; and how many each text has."""
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    offsets = np.r_[0, np.cumsum([len(text) for text in padded])]
    hashes, _ = _shingle_hashes("".join(padded), offsets)
    # the overwritten 5-grams at each text's end repeat its last one; the very last text has none
    return hashes, np.diff(np.r_[offsets[:-1], len(hashes)])


@cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    from datasketch import MinHash

    multipliers, additions = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme="affine32").permutations
    return np.asarray(multipliers).astype(np.uint32), np.asarray(additions).astype(np.uint32)


def _calls(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = characters = 0
    for index, text in enumerate(texts):
        characters += max(len(text), SHINGLE)
        if characters >= CALL_CHARACTERS:
            yield start, index + 1
            start, characters = index + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _kernel(texts: Sequence[str]) -> np.ndarray:
    """Signatures of texts of one call, [texts, 128] uint32."""
    multipliers, additions = _permutations()
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    offsets = np.r_[0, np.cumsum([len(text) for text in padded])]
    hashes, scratch = _shingle_hashes("".join(padded), offsets)
    out = np.empty((PERMUTATIONS, len(texts)), np.uint32)
    for p in range(PERMUTATIONS):
        np.multiply(hashes, multipliers[p], out=scratch)
        scratch += additions[p]
        np.minimum.reduceat(scratch, offsets[:-1], out=out[p])
    return out.T


def _shingle_hashes(text: str, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One uint32 a 5-gram. A 5-gram that crosses into the next text is overwritten with the text's last."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    hashes = np.zeros(len(points) - SHINGLE + 1, np.uint32)
    scratch = np.empty_like(hashes)
    for i in range(SHINGLE):
        np.multiply(points[i : len(hashes) + i], MULTIPLIERS[i], out=scratch)
        hashes += scratch
    _mix(hashes, scratch)
    # datasketch mixes the hashes it is given once more
    _mix(hashes, scratch)
    for i in range(SHINGLE - 1, 0, -1):
        hashes[offsets[1:-1] - i] = hashes[offsets[1:-1] - SHINGLE]
    return hashes, scratch


def _mix(hashes: np.ndarray, scratch: np.ndarray) -> None:
    """The finalizer of MurmurHash3, 32 bits, in place."""
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        np.right_shift(hashes, shift, out=scratch)
        hashes ^= scratch
        hashes *= np.uint32(multiplier)
    np.right_shift(hashes, 16, out=scratch)
    hashes ^= scratch


def _band_keys(part: np.ndarray) -> np.ndarray:
    """One uint64 a row; two bands that differ and collide only cost a comparison."""
    keys = np.zeros(len(part), np.uint64)
    for column in part.T:
        keys ^= column
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _bucket_pairs(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs as left * total + right, from each bucket of equal keys."""
    total = len(keys)
    order = np.argsort(keys, kind="stable")
    placed = keys[order]
    yield np.empty(0, np.int64)
    near, distance, made = np.arange(total - 1), 0, 0
    while len(near) and (distance < NEIGHBOURS or made < PAIRS_PER_BAND):
        distance += 1
        near = near[near < total - distance]
        near = near[placed[near] == placed[near + distance]]
        made += len(near)
        yield _pairs(order[near], order[near + distance], total)
    starts = np.r_[True, placed[1:] != placed[:-1]]
    first = np.maximum.accumulate(np.where(starts, np.arange(total), 0))
    far = np.flatnonzero(np.arange(total) - first > distance)
    yield _pairs(order[first[far]], order[far], total)


def _pairs(left: Any, right: Any, total: int) -> np.ndarray:
    return np.minimum(left, right).astype(np.int64) * total + np.maximum(left, right)


def _estimates(signed: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Estimated Jaccard of pairs, in slices that bound the memory."""
    out = np.empty(len(pairs), np.float64)
    for start in range(0, len(pairs), 1 << 16):
        left, right = np.divmod(pairs[start : start + (1 << 16)], len(signed))
        out[start : start + (1 << 16)] = (signed[left] == signed[right]).mean(axis=1)
    return out
