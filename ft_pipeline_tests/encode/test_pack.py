"""Packing: every row once, no window above the cap, fuller than next-fit, the same lengths the same windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.encode.pack import fill, pack

CAP = 64
LENGTHS = st.lists(st.integers(1, CAP), max_size=300)
FEW_LENGTHS = st.lists(st.sampled_from([1, 2, 3, 21, 32, 33, 64]), max_size=300)


def windows_of(lengths, **changes) -> list[list[int]]:
    return list(pack(lengths, **{"window_tokens": CAP, "seed": 0, **changes}))


def next_fit(lengths: list[int]) -> int:
    windows, room = 0, 0
    for length in lengths:
        if length > room:
            windows, room = windows + 1, 4096
        room -= length
    return windows


def one_by_one(lengths: list[int]) -> int:
    """Best fit decreasing as the textbook has it: windows of one block."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        if fits := [(room, place) for place, room in enumerate(rooms) if room >= length]:
            rooms[min(fits)[1]] -= length
        else:
            rooms.append(CAP - length)
    return len(rooms)


@given(LENGTHS | FEW_LENGTHS, st.integers(0, 5), st.sampled_from([7, 50, 10_000]))
def test_every_row_is_in_exactly_one_window_and_no_window_is_too_long(lengths, seed, block):
    windows = windows_of(lengths, seed=seed, block_rows=block)
    assert sorted(r for w in windows for r in w) == list(range(len(lengths)))
    assert all(0 < sum(lengths[r] for r in w) <= CAP for w in windows)


@given(LENGTHS | FEW_LENGTHS)
def test_runs_of_equal_rows_are_packed_as_rows_one_by_one(lengths):
    assert len(windows_of(lengths)) == one_by_one(lengths)


@given(LENGTHS, st.integers(0, 5))
def test_no_two_windows_would_fit_in_one(lengths, seed):
    sums = sorted(sum(lengths[r] for r in w) for w in windows_of(lengths, seed=seed))
    assert len(sums) < 2 or sums[0] + sums[1] > CAP


@given(LENGTHS, st.integers(0, 5))
@settings(max_examples=30)
def test_the_same_lengths_give_the_same_windows_in_any_container(lengths, seed):
    import pyarrow as pa

    first = windows_of(lengths, seed=seed)
    for same in (
        tuple(lengths),
        np.array(lengths, np.int32),
        np.array(lengths, np.uint16),
        pa.array(lengths, pa.int64()),
    ):
        assert windows_of(same, seed=seed) == first


def test_another_seed_shares_windows_otherwise():
    lengths = [n % 60 + 1 for n in range(200)]
    assert windows_of(lengths, seed=1) != windows_of(lengths, seed=2)


def test_a_best_fit_leaves_a_place_for_the_row_that_needs_it():
    packing = pack([40, 50, 14, 24], window_tokens=64, seed=0)
    assert sorted(sorted(w) for w in packing) == [[0, 3], [1, 2]]
    assert fill([40, 50, 14, 24], packing, window_tokens=64) == 1.0 and len(packing) == 2


@pytest.mark.parametrize(("mean", "spread"), [(5.5, 1.0), (4.55, 0.7)])
def test_rows_of_real_lengths_fill_windows_above_99_5_percent(mean, spread):
    lengths = np.clip(np.random.default_rng(0).lognormal(mean, spread, 30_000), 8, 4096).astype(int).tolist()
    packing = pack(lengths, window_tokens=4096, seed=0)
    assert fill(lengths, packing, window_tokens=4096) > 0.995
    assert len(packing) < next_fit(lengths)


def test_a_row_more_than_a_block_costs_no_window_of_its_own():
    lengths = np.clip(np.random.default_rng(1).lognormal(5, 1, 10_001), 8, 4096).astype(int)
    assert len(pack(lengths, window_tokens=4096, seed=0)) <= len(pack(lengths[:-1], window_tokens=4096, seed=0)) + 2


@pytest.mark.parametrize("length", [0, 65])
def test_a_row_that_does_not_fit_is_refused(length):
    with pytest.raises(ValueError, match="does not fit"):
        pack([3, length], window_tokens=64, seed=0)
