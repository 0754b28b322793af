"""The numpy kernel is datasketch's, the bands find what they promise, the hashed overlap is near the exact one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.curate.overlap import Overlap
from ft_pipeline.curate.signatures import (
    MULTIPLIERS,
    PERMUTATIONS,
    SEED,
    bands_for,
    candidates,
    jaccard,
    shingles,
    signatures,
)

TEXTS = [
    "",
    "ab",
    "hello",
    "hello world, hello",
    "\u00e4\u00f6\U0001f600" * 9,
    "x" * 40_000,
    "the quick brown fox " * 30,
]


def _mixed(value: int) -> int:
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value ^= value >> shift
        value = value * multiplier & 0xFFFFFFFF
    return value ^ value >> 16


def _hash(shingle: str) -> int:
    total = sum(ord(c) * int(m) for c, m in zip(shingle, MULTIPLIERS, strict=True))
    return _mixed(total & 0xFFFFFFFF)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_kernel_is_datasketch_bit_for_bit(texts):
    from datasketch import MinHash

    for text, row in zip(texts, signatures(texts), strict=True):
        reference = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme="affine32", hashfunc=_hash)
        reference.update_batch(sorted(shingles(text)))
        assert np.array_equal(reference.hashvalues.astype(np.uint32), row)


def test_neighbours_in_a_call_do_not_matter():
    together = signatures(TEXTS)
    assert np.array_equal(together, np.concatenate([signatures([t]) for t in TEXTS]))


def test_bands_of_the_note():
    bands = bands_for(0.9)
    assert (bands.count, bands.rows) == (14, 9)
    assert bands.count * bands.rows <= PERMUTATIONS


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95, 1.0])
def test_bands_keep_their_promise(threshold):
    bands = bands_for(threshold)
    assert 1 - (1 - threshold**bands.rows) ** bands.count >= 0.9989


def test_every_near_pair_of_an_edited_set_is_a_candidate():
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
    texts = []
    for _ in range(60):
        base = random.choice(letters, 300)
        for edits in (0, 1, 2, 4):
            edited = base.copy()
            edited[random.integers(0, 300, edits)] = "#"
            texts.append("".join(edited))
    found = candidates(signatures(texts), bands_for(0.9), at_least=0.8)
    pairs = set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    sets = [shingles(t) for t in texts]
    near = {(i, k) for i in range(len(texts)) for k in range(i + 1, len(texts)) if jaccard(sets[i], sets[k]) >= 0.9}
    assert len(near) > 150
    assert len(near - pairs) / len(near) < 0.01
    assert np.all(found.left < found.right)


def test_a_bucket_of_thousands_costs_a_line(monkeypatch):
    monkeypatch.setattr("ft_pipeline.curate.signatures.PAIRS_PER_BAND", 1000)
    signed = np.repeat(signatures(["the same text, again and again"]), 3000, axis=0)
    found = candidates(signed, bands_for(0.9), at_least=0.8)
    assert len(found.left) < 3000 * 18
    assert set(range(1, 3000)) == set(found.right.tolist())


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abc ", max_size=60), min_size=2, max_size=12))
def test_hashed_overlap_is_near_the_exact_one(texts):
    pairs = [(i, k) for i in range(len(texts)) for k in range(i + 1, len(texts))]
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    found = Overlap(texts, np.arange(len(texts))).jaccard(left, right)
    exact = [jaccard(shingles(texts[i]), shingles(texts[k])) for i, k in pairs]
    assert np.allclose(found, exact, atol=1e-9)
