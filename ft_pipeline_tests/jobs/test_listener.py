"""What a run says becomes its row: status, progress, points, checkpoints; a database that is away stops nothing and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from ft_pipeline.errors import StorageError
from ft_pipeline.jobs.listener import EVERY_SECONDS, MOST_POINTS, PATIENCE_SECONDS, JobListener, NotWanted
from ft_pipeline.store.platform.open import Records, open_records
from ft_pipeline.workers.messages import log, progress, tell_state
from ft_pipeline_tests.jobs.stub import submit


@pytest.fixture
def records(home) -> Iterator[Records]:
    opened = open_records(home)
    yield opened
    opened.close()


class World:
    """A live job, its listener and a clock."""

    def __init__(self, records: Records) -> None:
        self.records, self.now = records, 0.0
        self.id = submit(records).id
        records.move(self.id, "provisioning")
        self.listener = JobListener(records=records, job_id=self.id, attempt=1, clock=lambda: self.now)

    @property
    def job(self):
        return self.records.job(self.id)

    def step(self, step: int, total: int = 10, **facts: Any) -> None:
        told = {
            "loss": 1 / step,
            "learning_rate": 1e-3,
            "tokens_per_second": 50,
            "eta_seconds": 5,
            "trained_tokens": 9 * step,
        }
        progress(self.listener, "train", step, total=total, unit="step", **told | facts)

    def rows(self, query: str) -> list[Any]:
        with self.records.read() as db:
            return list(db.execute(sa.text(query)).tuples())

    def events(self) -> list[str]:
        return [message for (message,) in self.rows("SELECT message FROM job_events ORDER BY id")]


@pytest.fixture
def world(records: Records) -> World:
    return World(records)


def test_the_row_follows_the_run(world: World) -> None:
    world.step(1)
    assert (world.job.status, world.job.step, world.job.planned_steps, world.job.loss) == ("running", 1, 10, 1.0)
    assert (world.job.trained_tokens, world.job.started_at is not None) == (9, True)
    assert world.job.expected_end > world.job.started_at
    world.now += EVERY_SECONDS
    tell_state(world.listener, "checkpointing", step=1)
    assert world.job.status == "checkpointing"
    world.now += EVERY_SECONDS
    tell_state(world.listener, "checkpointed", step=1, bytes=5)
    assert (world.job.status, world.job.checkpoint) == ("running", "step-00000001")
    world.now += EVERY_SECONDS
    log(world.listener, "pod 0 ended: evicted", lost_steps=0)
    assert world.job.status == "preempted"
    world.now += EVERY_SECONDS
    progress(world.listener, "evaluate", 1, total=9)
    assert world.job.status == "evaluating"
    assert "checkpoint after step 1" in world.events()


def test_steps_belong_to_the_state_in_which_they_were_made(world: World) -> None:
    """Metering reads them from the intervals: none to waiting for the run, all to training."""
    world.step(5)
    world.now += EVERY_SECONDS
    world.step(9)
    progress(world.listener, "evaluate", 1, total=9)
    world.listener.close()
    found = world.records.intervals(of_jobs=[world.id])
    assert [(i.state, i.from_step, i.to_step) for i in found[1:]] == [
        ("provisioning", None, None), ("running", None, 9), ("evaluating", 9, None),
    ]  # fmt: skip


def test_it_writes_once_a_second_and_the_rest_at_the_end(world: World, monkeypatch) -> None:
    written = []
    observe = Records.observe
    monkeypatch.setattr(Records, "observe", lambda *a, **k: written.append(1) or observe(*a, **k))
    for step in range(1, 6):
        world.step(step)
        world.now += EVERY_SECONDS / 5
    assert (len(written), world.job.step) == (1, 1)
    world.listener.close()
    assert (len(written), world.job.step) == (2, 5)
    assert [s for (s,) in world.rows("SELECT step FROM job_metrics ORDER BY step")] == [1, 2, 3, 4, 5]


def test_checkpoints_have_the_losses_of_their_step_and_come_once(world: World) -> None:
    world.step(1)
    log(world.listener, "validation loss 0.5 after step 1", step=1, validation_loss=0.5)
    for _ in range(2):
        tell_state(world.listener, "checkpointed", step=1, bytes=5)
    world.listener.close()
    (row,) = world.rows("SELECT step, place, metrics FROM job_checkpoints")
    assert (row[:2], json.loads(row[2])) == ((1, "step-00000001"), {"step": 1, "train_loss": 1.0, "valid_loss": 0.5})


def test_a_long_run_keeps_so_many_points(world: World) -> None:
    total = 10 * MOST_POINTS
    for step in range(1, total + 1):
        world.step(step, total=total)
    world.listener.close()
    ((count, first, last),) = world.rows("SELECT COUNT(*), MIN(step), MAX(step) FROM job_metrics")
    assert (first, last) == (1, total)
    assert count <= MOST_POINTS + 2


def test_what_is_no_number_stops_nothing(world: World) -> None:
    world.step(1, loss=float("nan"), tokens_per_second=float("inf"))
    assert (world.job.step, world.job.loss) == (1, None)


def test_a_database_that_is_away_stops_no_training_and_loses_nothing(world: World, monkeypatch, caplog) -> None:
    observe = Records.observe

    def away(*_args, **_words):
        raise StorageError("the catalog does not answer")

    monkeypatch.setattr(Records, "observe", away)
    world.step(1)
    tell_state(world.listener, "checkpointed", step=1, bytes=5)
    assert "trains on, its status is written later: the catalog does not answer" in caplog.text
    monkeypatch.setattr(Records, "observe", observe)
    world.step(2)
    assert world.job.step is None, "not tried again at once"
    world.now += PATIENCE_SECONDS
    world.step(3)
    assert (world.job.step, world.job.checkpoint) == (3, "step-00000001")
    assert [s for (s,) in world.rows("SELECT step FROM job_metrics ORDER BY step")] == [1, 2, 3]


def test_a_run_that_nobody_wants_any_more_ends(world: World) -> None:
    """Its job was given up as lost and launched again, while it lived on."""
    world.records.move(world.id, "queued")
    world.records.move(world.id, "provisioning")
    with pytest.raises(NotWanted):
        world.step(1)
    assert world.job.step is None
    world.step(2)
    world.listener.close()
