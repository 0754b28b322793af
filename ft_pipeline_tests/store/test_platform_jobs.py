"""Jobs as rows, on SQLite and PostgreSQL: one job for one key under 200 submits at once; events, checkpoints and points in order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ft_pipeline.errors import NotFoundError
from ft_pipeline.store.catalog_database import open_database
from ft_pipeline.store.platform.jobs import IdempotencyMismatch
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.queue import Observation, SavedCheckpoint
from ft_pipeline.store.platform.rows import NewJob

SUBMITS = 200


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def records(request: pytest.FixtureRequest, tmp_path) -> Iterator[Records]:
    sqlite = f"sqlite:///{tmp_path / 'catalog.db'}"
    opened = Records(
        open_database(sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_url")).engine
    )
    opened.add_tenant("acme", actor="tester")
    yield opened
    opened.close()


def new(number: int) -> NewJob:
    return NewJob(
        id=f"ftjob-{number:024x}", tenant="acme", line="acme/router", tier=10, recipe="{}", recipe_sha256="a" * 64, request={},
        placement={}, estimate={}, base_model="tiny", training_file="file-1", created_by="tester",
    )  # fmt: skip


def everybody(_counts: object) -> None:
    """Admits whoever comes."""


def test_two_hundred_submits_at_once_with_one_key_are_one_job(records: Records) -> None:
    def submit(number: int) -> tuple[str, bool]:
        job, is_new = records.submit(new(number), admit=everybody, key="once", request_sha256="r")
        return job.id, is_new

    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(submit, range(SUBMITS)))
    assert len({job_id for job_id, _ in made}) == 1
    assert [is_new for _, is_new in made].count(True) == 1
    assert len(records.find_jobs(tenant="acme")) == 1
    assert [event.message for event in records.events(made[0][0])] == ["the job is queued"]
    with pytest.raises(IdempotencyMismatch):
        records.submit(new(999), admit=everybody, key="once", request_sha256="another")
    used = records.idempotent("acme", "once")
    assert used and (used.request_sha256, used.object_id) == ("r", made[0][0])
    assert records.idempotent("other", "once") is None


def test_what_is_to_be_seen_of_a_job(records: Records) -> None:
    for number in (1, 2):
        records.submit(new(number), admit=everybody)
    job, other = new(1).id, new(2).id
    records.move(job, "provisioning")
    records.move(job, "running")
    for step in (10, 20, 30):
        saved = SavedCheckpoint(step=step, place=f"s{step}", metrics={"loss": 1 / step})
        assert records.observe(job, Observation(points={step: {"loss": 1 / step}}, checkpoints=[saved]), attempt=1)
    newest = records.events(job, limit=1)
    older = records.events(job, before=newest[0].id)
    assert [e.id for e in newest + older] == sorted((e.id for e in newest + older), reverse=True)
    assert [e.id for e in records.events_after(job, older[-1].id)] == sorted(e.id for e in newest + older[:-1])
    first = records.checkpoints(job, limit=2)
    assert [c.step for c in first] == [30, 20]
    assert [c.step for c in records.checkpoints(job, after=first[-1].id)] == [10]
    assert [(p.attempt, p.step, p.values["loss"]) for p in records.points(job, after=10)] == [
        (1, 20, 1 / 20),
        (1, 30, 1 / 30),
    ]
    for page in (
        lambda: records.events(other, before=newest[0].id),
        lambda: records.checkpoints(other, after=first[0].id),
    ):
        with pytest.raises(NotFoundError):
            page()
