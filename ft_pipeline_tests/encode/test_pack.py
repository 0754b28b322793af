"""Packing: every row once, no window above the cap, fuller than next-fit, the same inputs the same windows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.encode.pack import fill, pack

CAP = 64
LENGTHS = st.lists(st.integers(1, CAP), max_size=300)


def next_fit(lengths: list[int]) -> int:
    windows, room = 0, 0
    for length in lengths:
        if length > room:
            windows, room = windows + 1, 4096
        room -= length
    return windows


@given(LENGTHS, st.integers(0, 5), st.sampled_from([7, 50, 10_000]))
def test_every_row_is_in_exactly_one_window_and_no_window_is_too_long(lengths, seed, block):
    windows = pack(lengths, window_tokens=CAP, seed=seed, block_rows=block)
    assert sorted(r for w in windows for r in w) == list(range(len(lengths)))
    assert all(0 < sum(lengths[r] for r in w) <= CAP for w in windows)


@given(LENGTHS, st.integers(0, 5))
def test_no_two_windows_would_fit_in_one(lengths, seed):
    sums = sorted(sum(lengths[r] for r in w) for w in pack(lengths, window_tokens=CAP, seed=seed))
    assert len(sums) < 2 or sums[0] + sums[1] > CAP


@given(LENGTHS, st.integers(0, 5))
@settings(max_examples=30)
def test_the_same_inputs_give_the_same_windows(lengths, seed):
    assert pack(lengths, window_tokens=CAP, seed=seed) == pack(lengths, window_tokens=CAP, seed=seed)


def test_a_best_fit_leaves_a_place_for_the_row_that_needs_it():
    windows = pack([40, 50, 14, 24], window_tokens=64, seed=0)
    assert sorted(sorted(w) for w in windows) == [[0, 3], [1, 2]]
    assert fill([40, 50, 14, 24], windows, window_tokens=64) == 1.0


def test_rows_of_real_lengths_fill_windows_above_99_percent():
    import numpy as np

    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, 30_000), 8, 4096).astype(int).tolist()
    windows = pack(lengths, window_tokens=4096, seed=0)
    assert fill(lengths, windows, window_tokens=4096) > 0.99
    assert len(windows) < next_fit(lengths)


@pytest.mark.parametrize("length", [0, 65])
def test_a_row_that_does_not_fit_is_refused(length):
    with pytest.raises(ValueError, match="does not fit"):
        pack([3, length], window_tokens=64, seed=0)
