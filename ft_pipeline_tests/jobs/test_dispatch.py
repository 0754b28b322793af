"""What a look of the dispatcher does: exactly one run for each launch, whatever dies; every end and every wish reaches the row."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from ft_pipeline.errors import StorageError
from ft_pipeline.jobs.dispatch import LEASE_SECONDS, LOST_SECONDS, MOST_FRUITLESS, Ending, Tick, tick
from ft_pipeline.jobs.queue import Rules
from ft_pipeline.store.catalog_database import open_database
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import LIVE
from ft_pipeline_tests.jobs.stub import COMPLETE, Killed, StubLauncher, submit

STOPPED = Ending(outcome="stopped", error={"code": "interrupted", "message": "the run was stopped", "param": None})
NAN = {"code": "training_failed", "message": "step 3: loss nan", "param": None}


BOTH = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def records(url: str) -> Iterator[Records]:
    opened = Records(open_database(url).engine)
    yield opened
    opened.close()


class World:
    """Records, a stub launcher, and a clock that a test moves."""

    def __init__(self, records: Records) -> None:
        self.records, self.launcher, self.later = records, StubLauncher(), 0.0

    def tick(self, places: int = 10, **rules) -> Tick:
        return tick(self.records, self.launcher, Rules(places=places, **rules), clock=self.now)

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.later)

    def status(self, job) -> str:
        return self.records.job(job.id).status

    def end(self, job, ending: Ending = COMPLETE) -> Tick:
        self.launcher.end(self.records.job(job.id), ending)
        return self.tick()


@pytest.fixture
def world(records: Records) -> World:
    return World(records)


@BOTH
def test_a_job_goes_through_one_run_to_its_end(world: World) -> None:
    job = submit(world.records)
    assert world.tick().released == [job.id]
    assert (world.status(job), world.launcher.log) == ("provisioning", [f"{job.id}#1"])
    world.tick()
    assert world.records.job(job.id).run_id == "run-1"
    world.end(job)
    ended = world.records.job(job.id)
    assert (ended.status, ended.fine_tuned_model, ended.finished_at is not None) == ("succeeded", "acme/router@1", True)
    assert world.tick() == Tick()
    assert world.launcher.asked == 1


def test_a_blocked_promotion_is_a_training_that_succeeded(world: World) -> None:
    job = submit(world.records)
    world.tick()
    said = {"blocked": True, "verdict": "FAIL", "reason": "worse than the base", "gates": [], "report": "r.html"}
    world.end(job, Ending(outcome="blocked", promotion=said, trained_tokens=99))
    ended = world.records.job(job.id)
    assert (ended.status, ended.fine_tuned_model, ended.promotion) == ("succeeded", None, said)
    assert ended.trained_tokens == 99


def test_a_training_that_failed_says_why(world: World) -> None:
    job = submit(world.records)
    world.tick()
    world.end(job, Ending(outcome="failed", error=NAN))
    assert (world.status(job), world.records.job(job.id).error) == ("failed", NAN)


@pytest.mark.parametrize(
    ("wish", "ending", "status"),
    [
        ("cancel", Ending(outcome="cancelled"), "cancelled"),
        ("cancel", STOPPED, "cancelled"),
        ("cancel", Ending(outcome="failed", error=NAN), "cancelled"),
        ("cancel", COMPLETE, "succeeded"),
        ("pause", Ending(outcome="cancelled"), "paused"),
        ("pause", STOPPED, "paused"),
        ("pause", Ending(outcome="failed", error=NAN), "failed"),
        ("pause", COMPLETE, "succeeded"),
        (None, Ending(outcome="cancelled"), "cancelled"),
        (None, STOPPED, "queued"),
    ],
)
def test_what_an_end_means_with_a_wish(world: World, wish, ending: Ending, status: str) -> None:
    """A wish names the end of what was interrupted. What had ended by itself before the wish came has ended."""
    job = submit(world.records)
    world.tick()
    if wish:
        world.records.wish(job.id, wish)
    world.tick()
    assert world.launcher.stopped == (["run-1"] if wish else [])
    world.tick()
    assert world.launcher.stopped == (["run-1"] if wish else []), "a run that is stopping is not told twice"
    world.launcher.end(world.records.job(job.id), ending)
    world.tick(places=0)
    assert world.status(job) == status
    assert world.records.job(job.id).wish is None


@pytest.mark.parametrize(("wish", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_wish_before_the_run_began(world: World, wish, status: str) -> None:
    job = submit(world.records)
    world.launcher.killed_before = True
    with pytest.raises(Killed):
        world.tick()
    world.records.wish(job.id, wish)
    world.tick(places=0)
    assert (world.status(job), world.launcher.log) == (status, [])


def test_a_paused_job_goes_on_as_another_attempt(world: World) -> None:
    job = submit(world.records)
    world.tick()
    world.records.wish(job.id, "pause")
    world.tick()
    world.end(job, Ending(outcome="cancelled"))
    assert world.tick().released == []
    world.records.move(job.id, "queued", only_from=["paused"])
    world.tick()
    assert world.launcher.log == [f"{job.id}#1", f"{job.id}#2"]


def test_a_cancel_that_comes_while_the_run_is_lost_is_not_forgotten(world: World) -> None:
    """Between the look at the run and the move back into the queue: the move sees the wish, and the next look carries it out."""
    job = submit(world.records)
    world.tick()
    world.launcher.end(world.records.job(job.id), STOPPED)
    ending = world.launcher.ending

    def late(state):
        world.records.wish(job.id, "cancel")
        return ending(state)

    world.launcher.ending = late
    world.tick()
    assert world.status(job) == "provisioning"
    world.launcher.ending = ending
    world.tick()
    assert (world.status(job), len(world.launcher.log)) == ("cancelled", 1)


@pytest.mark.parametrize("where", ["killed_before", "killed_after"])
def test_killed_between_release_and_run(world: World, where: str) -> None:
    """The row is released and nobody knows whether a run was started: after the lease the same launch is made again, and there is one run."""
    job = submit(world.records)
    setattr(world.launcher, where, True)
    with pytest.raises(Killed):
        world.tick()
    setattr(world.launcher, where, False)
    world.tick()
    world.later = LEASE_SECONDS + 1
    world.tick()
    world.tick()
    assert world.launcher.log == [f"{job.id}#1"]
    assert world.records.job(job.id).run_id == "run-1"


@BOTH
def test_killed_between_run_and_its_writing_down(world: World, monkeypatch) -> None:
    job = submit(world.records)
    world.tick()

    def die(*_args, **_words):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Records, "set_run", die)
        with pytest.raises(Killed):
            world.tick()
    world.later = LEASE_SECONDS + 1
    world.tick()
    assert (world.launcher.asked, world.launcher.log) == (1, [f"{job.id}#1"])
    assert world.records.job(job.id).run_id == "run-1"


def test_a_run_that_was_deleted_is_not_made_again_under_its_key(world: World) -> None:
    """Somebody cleans Dagster's history: the same run_key would be a second run of one launch."""
    job = submit(world.records)
    world.tick()
    world.tick()
    world.launcher.runs.clear()
    world.later = LEASE_SECONDS + 1
    world.tick(places=0)
    assert (world.status(job), world.launcher.asked) == ("queued", 1)


def test_a_launch_without_a_run_is_given_up_and_queued_again(world: World) -> None:
    job = submit(world.records)
    world.launcher.launch = lambda job: None
    world.tick()
    world.later = LOST_SECONDS + 1
    world.tick(places=0)
    assert world.status(job) == "queued"


def test_lost_again_and_again_it_fails_with_the_reason(world: World) -> None:
    job = submit(world.records)
    for number in range(1, MOST_FRUITLESS + 1):
        world.tick()
        assert world.records.job(job.id).attempt == number
        world.launcher.end(world.records.job(job.id), STOPPED)
        world.tick(places=0)
    ended = world.records.job(job.id)
    assert (ended.status, ended.error["code"]) == ("failed", "lost")
    assert "5 launches without a newer step: the run was stopped" in ended.error["message"]


def test_progress_starts_the_count_anew(world: World) -> None:
    """A preempted run that gets on is never given up."""
    job = submit(world.records)
    for number in range(1, 3 * MOST_FRUITLESS):
        world.tick()
        if number % 4 == 0:
            world.records.move(job.id, "running")
            world.records.progress(job.id, attempt=number, step=number)
        world.launcher.end(world.records.job(job.id), STOPPED)
        world.tick(places=0)
    assert (world.status(job), world.records.job(job.id).attempt) == ("queued", 3 * MOST_FRUITLESS - 1)


def test_one_job_that_cannot_be_followed_holds_up_no_other(world: World) -> None:
    first, second = submit(world.records), submit(world.records)
    world.tick()
    for job in (first, second):
        world.launcher.end(world.records.job(job.id))
    del world.launcher.endings["run-1"]
    told = world.tick()
    assert (world.status(first), world.status(second)) == ("provisioning", "succeeded")
    assert told.troubles == [f"{first.id}: KeyError: 'run-1'"]


@BOTH
def test_dispatchers_at_once_go_over_no_limit(world: World, url: str) -> None:
    """Two daemons by mistake: choosing and releasing are one transaction."""
    for tenant in ("a", "b", "c"):
        for _ in range(6):
            submit(world.records, tenant)
    launchers = [StubLauncher() for _ in range(4)]
    for launcher in launchers:
        launcher.runs = launchers[0].runs

    def work(launcher: StubLauncher) -> None:
        mine = Records(open_database(url).engine)
        for _ in range(3):
            tick(mine, launcher, Rules(places=5), clock=world.now)
        mine.close()

    threads = [threading.Thread(target=work, args=(launcher,)) for launcher in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = [key for launcher in launchers for key in launcher.log]
    live = world.records.find_jobs(statuses=LIVE)
    assert len(log) == len(set(log)) == len(live) == 5
    assert max(sum(job.tenant == t for job in live) for t in "abc") <= 2


@BOTH
def test_random_deaths_lose_nothing_and_start_nothing_twice(world: World) -> None:
    """40 jobs of 5 tenants; at every third look the dispatcher is killed at a random point. Each job ends, with one run for each launch."""
    draw = random.Random(7)
    jobs = [submit(world.records, f"t{n % 5}") for n in range(40)]
    for _ in range(400):
        world.launcher.killed_before, world.launcher.killed_after = (draw.random() < 0.2 for _ in range(2))
        with contextlib.suppress(Killed):
            world.tick(places=8)
        world.later += 20
        for job in world.records.find_jobs(statuses=LIVE):
            if job.run_key in world.launcher.runs and draw.random() < 0.5:
                world.launcher.end(job, STOPPED if draw.random() < 0.2 else COMPLETE)
        if all(world.records.job(job.id).has_ended for job in jobs):
            break
    ended = [world.records.job(job.id) for job in jobs]
    assert {job.status for job in ended} == {"succeeded"}
    assert len(world.launcher.log) == len(set(world.launcher.log)) == sum(job.attempt for job in ended)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_dropped_connection_ends_the_look_and_the_next_goes_on(world: World, url: str) -> None:
    """PostgreSQL drops the dispatcher's connection in the middle of a look: StorageError, and nothing is half done."""
    job = submit(world.records)
    other = Records(open_database(url).engine)
    launch = world.launcher.launch

    def drop() -> None:
        with other.engine.connect() as db:
            db.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )

    def hold(_tenant: str) -> None:
        drop()

    with pytest.raises(StorageError, match="refused"):
        world.tick(hold=hold)
    assert world.status(job) == "queued"
    world.tick()
    world.launcher.launch = lambda job: (launch(job), drop())
    world.tick()
    world.end(job)
    assert (world.status(job), world.launcher.log) == ("succeeded", [f"{job.id}#1"])
    other.close()


@BOTH
def test_what_a_run_tells_after_its_end_is_not_written(world: World) -> None:
    from ft_pipeline.store.platform.queue import Observation

    job = submit(world.records)
    world.tick()
    seen = Observation(status="running", progress={"step": 3}, points={3: {"loss": 1.0}}, said=[("info", "hello")])
    assert world.records.observe(job.id, seen, attempt=1)
    assert (world.status(job), world.records.job(job.id).step) == ("running", 3)
    assert world.records.observe(job.id, seen, attempt=1), "the same again is no error: messages may be read twice"
    assert not world.records.observe(job.id, seen, attempt=2)
    world.end(job)
    assert not world.records.observe(job.id, seen, attempt=1)
    with world.records.read() as db:
        assert db.execute(sa.text("SELECT COUNT(*) FROM job_metrics")).scalar() == 1
