"""The plan of a run: which windows each step sees, at any world size; how many steps; the learning rate."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ft_pipeline.finetune.schedule import Schedule, mine, noise_seed, order, rows_of
from ft_pipeline_tests import tiny

SIZES = st.tuples(st.integers(1, 200), st.integers(1, 9)).filter(lambda s: s[0] >= s[1])


def schedule(windows: int, **changes) -> Schedule:
    return Schedule(section=tiny.recipe(**changes).finetune, windows=windows)


@given(SIZES, st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_sees_each_window_once_but_for_the_tail(shape, epoch, seed):
    rows, size = shape
    per_epoch = rows // size
    seen = Counter(int(r) for m in range(epoch * per_epoch, (epoch + 1) * per_epoch) for r in rows_of(m, shape, seed))
    assert set(seen.values()) == {1} and len(seen) == per_epoch * size


@given(st.integers(0, 50), st.integers(1, 16), st.sampled_from([1, 2, 4, 8]))
def test_all_ranks_together_do_the_same_micro_batches_at_any_world_size(step, per_step, world):
    assume(per_step % world == 0)
    together = sorted(m for rank in range(world) for m in mine(step, per_step, (rank, world)))
    assert together == list(mine(step, per_step))


@given(
    st.tuples(st.integers(1, 120), st.integers(1, 6)).filter(lambda s: s[0] >= s[1]),
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 3, 4])), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_each_window_comes_once_an_epoch_whenever_a_run_stops_and_however_many_ranks_go_on(shape, attempts, seed):
    """The only state is the number of finished steps: each attempt begins there, with another world size."""
    (rows, size), per_step, step = shape, 12, 0
    seen: dict[int, list[int]] = {}
    for steps, world in attempts:
        for _ in range(steps):
            for rank in range(world):
                for micro in mine(step, per_step, (rank, world)):
                    seen.setdefault(micro // (rows // size), []).extend(rows_of(micro, shape, seed).tolist())
            step += 1
    whole = step * per_step // (rows // size)
    assert sorted(seen) == list(range(len(seen)))
    for epoch, found in seen.items():
        assert len(set(found)) == len(found)
        assert epoch >= whole or len(found) == rows // size * size


@given(SIZES, st.integers(0, 400), st.integers(0, 3))
def test_a_seek_goes_where_reading_on_would_have_come(shape, micro, seed):
    read = [rows_of(m, shape, seed).tolist() for m in range(micro + 1)]
    order.cache_clear()
    assert rows_of(micro, shape, seed).tolist() == read[-1]


def test_neighbouring_epochs_are_not_the_same_stream_shifted():
    first, second = order(0, 0, 1000), order(0, 1, 1000)
    assert max((first[k:] == second[: 1000 - k]).mean() for k in range(8)) < 0.05


def test_the_noise_of_every_forward_pass_is_its_own():
    assert len({noise_seed(s, m) for s in range(5) for m in range(200)}) == 1000


@given(st.integers(8, 300), st.integers(1, 5), st.sampled_from([(8, 4), (8, 8), (8, 1), (6, 2)]))
def test_a_run_ends_when_no_further_step_can_be_filled(windows, epochs, batch):
    plan = schedule(windows, epochs=epochs, windows_per_step=batch[0], windows_per_micro=batch[1])
    left = plan.micros_per_epoch * epochs - plan.steps * plan.micros_per_step
    assert 0 <= left < plan.micros_per_step and plan.sampler_exhausted == (plan.steps > 0)


def test_the_validation_loss_is_measured_before_after_and_at_each_end_of_an_epoch():
    plan = schedule(69, epochs=6)
    assert plan.steps == 51
    assert [s for s in range(plan.steps + 1) if plan.ends_epoch(s)] == [0, 9, 17, 26, 34, 43, 51]


@pytest.mark.parametrize(("shape", "last"), [("cosine", 0.0), ("linear", 0.0), ("constant", 1e-2)])
def test_the_rate_warms_up_and_falls(shape, last):
    plan = schedule(400, epochs=2, schedule=shape, warmup_share=0.1)
    rates = [plan.learning_rate(s) for s in range(plan.steps + 1)]
    assert rates[0] == pytest.approx(1e-3) and max(rates) == pytest.approx(1e-2)
    assert rates[10] == pytest.approx(1e-2) and rates[-1] == pytest.approx(last, abs=1e-12)
