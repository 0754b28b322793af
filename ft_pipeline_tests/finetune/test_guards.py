"""Guards of a policy: each sees its own drift, tells it once, and goes on after a resume as if nothing had been."""

from __future__ import annotations

import pytest

from ft_pipeline.finetune.guards import Drift, alarms
from ft_pipeline.recipe_reinforce import Guards

CALM = {"kl_completion": 1.0, "length": 20.0, "reward": 0.5, "flat_groups": 0.2}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({}, set()),
        ({"kl_completion": 16.0}, {"kl"}),
        ({"length": 41.0}, {"length"}),
        ({"length": 9.0}, {"length"}),
        ({"reward": 0.25}, {"reward_drop"}),
        ({"reward": 1.05}, {"reward_jump"}),
        ({"flat_groups": 0.95}, {"flat_groups"}),
        ({"kl_completion": 20.0, "length": 80.0, "reward": 1.1}, {"kl", "length", "reward_jump"}),
    ],
)
def test_each_guard_sees_its_own_drift(now, expected):
    assert set(alarms([CALM, CALM, {**CALM, **now}], Guards())) == expected


def test_a_run_without_rewards_is_watched_for_what_it_has():
    assert alarms([{"length": 5.0}, {"length": 50.0}], Guards()).keys() == {"length"}


def entries(*lengths: float):
    return [{"step": n, **CALM, "length": length} for n, length in enumerate(lengths, 1)]


def test_a_guard_tells_once_for_as_long_as_it_lasts_and_marks_the_metrics():
    said: list[str] = []
    drift = Drift(Guards(window_steps=2), lambda message: said.append(message.text))
    marks = [drift.stepped(e) for e in entries(10, 10, 30, 30, 30, 30, 10, 10, 30, 30)]
    assert [n + 1 for n, mark in enumerate(marks) if mark] == [4, 6, 10]
    assert marks[3] == {"alarm_length": 1.0}
    assert len(said) == 2 and "guard length at step 4: completions have 30.0 tokens, 10.0 at the start" in said[0]


@pytest.mark.parametrize("cut", range(8))
def test_a_resumed_run_is_watched_as_the_whole_one(cut):
    steps = entries(10, 10, 30, 30, 30, 30, 10, 10)
    whole, said = Drift(Guards(window_steps=2), lambda _: None), []
    marks = [whole.stepped(e) for e in steps]
    resumed = Drift(Guards(window_steps=2), lambda message: said.append(message.text))
    resumed.resumed(steps[:cut])
    assert [resumed.stepped(e) for e in steps[cut:]] == marks[cut:]
    assert len(said) == (1 if cut < 4 else 0)
