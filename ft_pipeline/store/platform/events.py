"""What is to be seen of a job while it runs and afterwards: events in order, checkpoints, the loss curve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import NotFoundError
from ft_pipeline.store.catalog_database import Database
from ft_pipeline.store.platform.rows import JobCheckpoint, JobEvent
from ft_pipeline.store.platform.tables import idempotency, job_checkpoints, job_events, job_metrics, jobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One step of one attempt."""

    attempt: int
    step: int
    values: Mapping[str, Any]
    """loss, grad_norm, learning_rate, tokens_per_second, as far as they were reported."""
    created_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """What an Idempotency-Key was used for."""

    request_sha256: str
    object_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeBy:
    """Which job made a version."""

    job_id: str
    training_file: str


class Events(Database):
    """Events, checkpoints and metrics of jobs. Whose job it is, `job()` has checked."""

    def events(self, job_id: str, *, before: int | None = None, limit: int | None = None) -> list[JobEvent]:
        """Newest first; `before` is the id of the last one of the page before. Raises NotFoundError for one of another job."""
        query = sa.select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.id.desc())
        with self.read() as db:
            if before is not None:
                _require(db, sa.select(job_events.c.id), (job_events, before, job_id))
                query = query.where(job_events.c.id < before)
            return [_event(row) for row in db.execute(query.limit(limit)).mappings()]

    def events_after(self, job_id: str, after: int = 0, *, limit: int | None = None) -> list[JobEvent]:
        """Oldest first, those behind an id: what a stream sends next."""
        query = sa.select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after)
        with self.read() as db:
            return [_event(row) for row in db.execute(query.order_by(job_events.c.id).limit(limit)).mappings()]

    def checkpoints(self, job_id: str, *, after: str | None = None, limit: int | None = None) -> list[JobCheckpoint]:
        """The furthest first; `after` is the id of the last one of the page before. Raises NotFoundError for one of another job."""
        table = job_checkpoints.c
        query = sa.select(job_checkpoints).where(table.job_id == job_id).order_by(table.step.desc(), table.id.desc())
        with self.read() as db:
            if after is not None:
                step = _require(db, sa.select(table.step), (job_checkpoints, after, job_id))
                place = sa.tuple_(table.step, table.id)
                query = query.where(place < sa.tuple_(sa.literal(step), sa.literal(after)))
            return [_checkpoint(row) for row in db.execute(query.limit(limit)).mappings()]

    def points(self, job_id: str, *, attempt: int | None = None, after: int = -1) -> list[Point]:
        """The steps of all attempts, or of one, in order; `after`: only later steps. A resumed run makes some steps again."""
        table = job_metrics.c
        query = sa.select(job_metrics).where(table.job_id == job_id, table.step > after)
        if attempt is not None:
            query = query.where(table.attempt == attempt)
        with self.read() as db:
            rows = db.execute(query.order_by(table.attempt, table.step))
            return [
                Point(attempt=r.attempt, step=r.step, values=json.loads(r[3]), created_at=r.created_at) for r in rows
            ]

    def jobs_of_models(self, tenant: str) -> dict[str, MadeBy]:
        """Version `tenant/name@N` -> the newest job that made it."""
        columns = (jobs.c.fine_tuned_model, jobs.c.id, jobs.c.training_file)
        query = sa.select(*columns).where(jobs.c.tenant == tenant, jobs.c.fine_tuned_model.is_not(None))
        with self.read() as db:
            rows = db.execute(query.order_by(jobs.c.created_at))
            return {label: MadeBy(job_id=job_id, training_file=file_id) for label, job_id, file_id in rows}

    def idempotent(self, tenant: str, key: str) -> Used | None:
        """What the tenant used a key for, None before the first time. Only `submit` decides; this saves the work of composing again."""
        query = sa.select(idempotency.c.request_sha256, idempotency.c.object_id)
        with self.read() as db:
            row = db.execute(query.where(idempotency.c.tenant == tenant, idempotency.c.key == key)).first()
        return None if row is None else Used(request_sha256=row[0], object_id=row[1])


def _require(db: sa.Connection, query: Any, of: tuple[sa.Table, Any, str]) -> Any:
    table, row_id, job_id = of
    found = db.execute(query.where(table.c.id == row_id, table.c.job_id == job_id)).first()
    if found is None:
        raise NotFoundError(f"{job_id} has nothing after {row_id!r}", cure="take `after` from the page before")
    return found[0]


def _event(row: Any) -> JobEvent:
    return JobEvent(**{**row, "data": json.loads(row["data"])})


def _checkpoint(row: Any) -> JobCheckpoint:
    return JobCheckpoint(**{**row, "metrics": json.loads(row["metrics"])})
