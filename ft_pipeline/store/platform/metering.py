"""What metering reads: intervals of jobs, the steps of their attempts, answers of models, stored bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.platform.jobs import add_event, read_job
from ft_pipeline.store.platform.rows import Interval, TrainingJob
from ft_pipeline.store.platform.tables import files, job_events, job_intervals, job_metrics, jobs, usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What a version answered on a day (UTC)."""

    tenant: str
    model: str
    day: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Metering(Database):
    """Facts, no prices."""

    def intervals(
        self, *, tenant: str | None = None, since: str = "", until: str = "~", of_jobs: Sequence[str] = ()
    ) -> list[Interval]:
        """Intervals that touch [since, until), by job and time; open ones have no end."""
        column = job_intervals.c
        where = [column.started_at < until, sa.or_(column.ended_at.is_(None), column.ended_at > since)]
        if tenant is not None:
            where.append(column.tenant == tenant)
        if of_jobs:
            where.append(column.job_id.in_(of_jobs))
        query = sa.select(job_intervals).where(*where).order_by(column.job_id, column.id)
        with self.read() as db:
            return [_interval(row) for row in db.execute(query).mappings()]

    def steps_of(self, job_ids: Sequence[str]) -> dict[str, dict[int, tuple[int, int]]]:
        """Job -> attempt -> (first, last step that it reported)."""
        column = job_metrics.c
        query = sa.select(column.job_id, column.attempt, sa.func.min(column.step), sa.func.max(column.step))
        query = query.where(column.job_id.in_(job_ids)).group_by(column.job_id, column.attempt)
        found: dict[str, dict[int, tuple[int, int]]] = {}
        with self.read() as db:
            for job_id, attempt, first, last in db.execute(query):
                found.setdefault(job_id, {})[attempt] = (first, last)
        return found

    def answered(self, *, tenant: str | None = None, first_day: str, last_day: str) -> list[Answered]:
        """Usage rows of days in [first_day, last_day], by tenant, model and day."""
        where = [usage.c.day >= first_day, usage.c.day <= last_day]
        if tenant is not None:
            where.append(usage.c.tenant == tenant)
        query = sa.select(usage).where(*where).order_by(usage.c.tenant, usage.c.model, usage.c.day)
        with self.read() as db:
            return [Answered(**row._asdict()) for row in db.execute(query)]

    def ended_after(self, moment: str, job_id: str, *, limit: int) -> list[TrainingJob]:
        """Jobs that ended after (moment, id), in that order."""
        place = sa.tuple_(jobs.c.finished_at, jobs.c.id)
        query = sa.select(jobs).where(
            jobs.c.finished_at.is_not(None), place > sa.tuple_(sa.literal(moment), sa.literal(job_id))
        )
        with self.read() as db:
            rows = db.execute(query.order_by(jobs.c.finished_at, jobs.c.id).limit(limit))
            return [read_job(row) for row in rows.mappings()]

    def stored_bytes(self, tenant: str) -> int:
        """Of the tenant's files that are neither deleted nor expired; each counts though tenants share the bytes."""
        unexpired = sa.or_(files.c.expires_at.is_(None), files.c.expires_at > now())
        where = (files.c.tenant == tenant, files.c.deleted_at.is_(None), unexpired)
        with self.read() as db:
            return int(
                db.execute(sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(*where)).scalar_one()
            )

    def note_once(self, job_id: str, message: str, *, mark: str) -> bool:
        """Adds a warning to a job unless it has one with this mark already. True when it was added."""
        with self.write() as db:
            data = f'"mark": "{mark}"'
            same = (job_events.c.job_id == job_id, job_events.c.data.contains(data, autoescape=True))
            if db.execute(sa.select(job_events.c.id).where(*same).limit(1)).first():
                return False
            add_event(db, job_id, message, level="warn", data={"mark": mark})
            return True


def _interval(row: Any) -> Interval:
    values: dict[str, Any] = dict(row)
    del values["id"]
    values["spot"] = bool(values["spot"])
    return Interval(**values)
