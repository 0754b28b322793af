"""Which checkpoints are kept: never fewer than the two newest, never without the best, never without a milestone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.retention import Retention, best_step, stops_early
from ft_pipeline_tests.runs import run_over

STEPS = st.sets(st.integers(1, 400), max_size=40)
LOSSES = st.dictionaries(st.integers(0, 400), st.floats(0, 10) | st.just(math.nan), max_size=40)
POLICIES = st.builds(Retention, last=st.integers(0, 6), best=st.booleans(), every=st.integers(0, 20))


@given(POLICIES, STEPS, LOSSES)
def test_the_two_newest_the_best_and_the_milestones_are_never_deleted(policy, steps, losses):
    doomed = policy.doomed(steps, losses)
    newest = sorted(steps)[-max(2, policy.last) :]
    assert not set(doomed) & set(newest) and set(doomed) <= steps
    if policy.best and (best := best_step({s: v for s, v in losses.items() if s in steps})) is not None:
        assert best not in doomed
    assert not any(policy.every and step % policy.every == 0 for step in doomed)


@given(POLICIES, STEPS, LOSSES)
def test_nothing_else_is_kept(policy, steps, losses):
    left = set(steps) - set(policy.doomed(steps, losses))
    milestones = sum(policy.every and step % policy.every == 0 for step in steps)
    assert len(left) <= max(2, policy.last) + policy.best + milestones
    assert policy.doomed(left, losses) == []


@given(LOSSES)
def test_the_best_is_the_earliest_of_the_lowest_and_never_the_base_model(losses):
    best = best_step(losses)
    trained = {step: loss for step, loss in losses.items() if step > 0 and not math.isnan(loss)}
    assert (best is None) == (not trained)
    if best is not None:
        assert trained[best] == min(trained.values()) and best == min(s for s in trained if trained[s] == trained[best])


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ({0: 1.0}, 1, False),
        ({0: 1.0, 2: 5.0}, 1, False),
        ({0: 1.0, 2: 0.5, 4: 0.6}, 1, True),
        ({0: 1.0, 2: 0.5, 4: 0.6}, 2, False),
        ({0: 1.0, 2: 0.5, 4: 0.6, 6: 0.5}, 2, True),
        ({0: 1.0, 2: 0.5, 4: 0.6, 6: 0.4}, 1, False),
        ({0: 1.0, 2: 0.5, 4: 0.6}, None, False),
    ],
)
def test_a_run_stops_early_after_so_many_evaluations_without_a_better_one(losses, patience, stops):
    assert stops_early(losses, patience) is stops


def test_a_run_keeps_what_its_placement_asks_for(road, tmp_path):
    run = run_over(road, tmp_path, every_steps=3, keep_best=True, keep_every=4, evaluate_every_steps=5, epochs=3)
    state = train(run)
    best, made = best_step(state.measured), run.checkpoints.steps()
    assert set(range(4, run.schedule.steps, 4)) <= set(made)
    assert best in (*made, run.schedule.steps) and len([s for s in made if s % 4 and s != best]) <= 2
    assert run.checkpoints.clear(state) is None
    best = best_step({step: loss for step, loss in state.measured.items() if step in made})
    assert set(run.checkpoints.steps()) == {step for step in made if step % 4 == 0} | {best}
