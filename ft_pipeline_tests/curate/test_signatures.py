"""The numpy kernel is datasketch's, the bands find what they promise, the overlap of many pairs is the exact one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.curate.bands import band_keys, band_pairs, bands_for, merged
from ft_pipeline.curate.overlap import jaccard_of
from ft_pipeline.curate.signatures import MULTIPLIERS, PERMUTATIONS, SEED, jaccard, shingles, signatures

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


def pairs_of(signed):
    keys = band_keys(signed, bands_for(0.9))
    found, band = merged([band_pairs(k, lambda used: signed[used], at_least=0.8) for k in keys])
    return np.divmod(found, len(signed)), band


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
    (left, right), band = pairs_of(signatures(texts))
    pairs = set(zip(left.tolist(), right.tolist(), strict=True))
    sets = [shingles(t) for t in texts]
    near = {(i, k) for i in range(len(texts)) for k in range(i + 1, len(texts)) if jaccard(sets[i], sets[k]) >= 0.9}
    assert len(near) > 150
    assert len(near - pairs) / len(near) < 0.01
    assert np.all(left < right) and len(pairs) == len(left)
    assert band.min() == 0 and band.max() < 14


def test_bands_are_those_of_datasketch():
    from datasketch import MinHash, MinHashLSH

    random = np.random.default_rng(1)
    words = ["".join(random.choice(list("abcdef"), 4)) for _ in range(40)]
    texts = [" ".join(random.choice(words, 12)) for _ in range(150)]
    texts += [f"{text} x" for text in texts[:50]]
    signed = signatures(texts)
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(14, 9))
    theirs = set()
    for n, line in enumerate(signed):
        sketch = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme="affine32", hashvalues=line)
        theirs |= {(other, n) for other in index.query(sketch)}
        index.insert(n, sketch)
    keys = band_keys(signed, bands_for(0.9))
    found, _ = merged([band_pairs(k, lambda used: signed[used], at_least=0.0) for k in keys])
    assert set(zip(*(side.tolist() for side in np.divmod(found, len(texts))), strict=True)) == theirs
    assert len(theirs) >= 50


def test_a_bucket_of_thousands_costs_a_line(monkeypatch):
    monkeypatch.setattr("ft_pipeline.curate.bands.PAIRS_PER_BAND", 1000)
    signed = np.repeat(signatures(["the same text, again and again"]), 3000, axis=0)
    (left, right), _ = pairs_of(signed)
    assert len(left) < 3000 * 6
    assert set(range(1, 3000)) == set(right.tolist())


@settings(deadline=None)
@given(st.lists(st.text(max_size=60) | st.text(alphabet="abc ", max_size=60), min_size=2, max_size=12))
def test_overlap_is_the_exact_one(texts):
    pairs = [(i, k) for i in range(len(texts)) for k in range(i + 1, len(texts))]
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    exact = [jaccard(shingles(texts[i]), shingles(texts[k])) for i, k in pairs]
    assert jaccard_of(texts, left, right).tolist() == exact
