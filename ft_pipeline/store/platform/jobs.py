"""Training jobs: one row each, moved by compare-and-set, every move with its event and its interval in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.platform.rows import ENDED, LIVE, NEXT, JobStatus, NewJob, TrainingJob, Wish
from ft_pipeline.store.platform.tables import idempotency, job_events, job_intervals, jobs
from ft_pipeline.store.platform.webhooks import enqueue

JSON_COLUMNS = ("request", "placement", "estimate", "promotion", "error")
PROGRESS = ("step", "planned_steps", "loss", "tokens_per_second", "trained_tokens", "expected_end", "checkpoint")
TOLD: Mapping[JobStatus, str] = {
    "succeeded": "fine_tuning.job.succeeded", "failed": "fine_tuning.job.failed", "cancelled": "fine_tuning.job.cancelled",
    "paused": "platform.job.paused",
}  # fmt: skip
"""Status -> the event that webhooks are sent, written in the transaction that makes it true."""
Admission = Callable[[Mapping[str, int]], None]
"""Given how many jobs of the tenant are in each status; raises what refuses one more."""


class IdempotencyMismatch(UserError):
    """A key that was used for another request."""


class Jobs(Database):
    """The jobs of every tenant."""

    def submit(
        self, new: NewJob, *, admit: Admission, key: str | None = None, request_sha256: str = ""
    ) -> tuple[TrainingJob, bool]:
        """The job and whether it is new: with an idempotency key the same request gives the same job, however often and at once.

        Raises IdempotencyMismatch for another request under the key, and what `admit` raises; then nothing is written.
        """
        with self.write() as db:
            if key and (known := _known(db, new.tenant, key=key, request_sha256=request_sha256)):
                return _job(db, known), False
            admit(_counts(db, new.tenant))
            moment = now()
            row = {name: getattr(new, name) for name in NewJob.__dataclass_fields__}
            row |= {name: _json(row[name]) for name in ("request", "placement", "estimate")}
            db.execute(sa.insert(jobs).values(**row, status="queued", attempt=0, created_at=moment, queued_at=moment))
            _enter(db, _job(db, new.id), moment)
            add_event(db, new.id, "the job is queued", data={"status": "queued"})
            if key:
                used = {"tenant": new.tenant, "key": key, "request_sha256": request_sha256, "object_id": new.id}
                db.execute(sa.insert(idempotency).values(**used, created_at=moment))
            return _job(db, new.id), True

    def job(self, job_id: str, *, tenant: str | None = None) -> TrainingJob:
        """A job, of this tenant where one is named. Raises NotFoundError, the same for another tenant's job."""
        with self.read() as db:
            return _job(db, job_id, tenant=tenant)

    def find_jobs(
        self, *, tenant: str | None = None, statuses: Sequence[JobStatus] = (), after: str | None = None, limit: int | None = None
    ) -> list[TrainingJob]:  # fmt: skip
        """Jobs, newest first; `after` is the id of the last one of the page before. Raises NotFoundError for an `after` that is none."""
        query = sa.select(jobs)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        if statuses:
            query = query.where(jobs.c.status.in_(statuses))
        with self.read() as db:
            if after is not None:
                last = _job(db, after, tenant=tenant)
                place = sa.tuple_(jobs.c.created_at, jobs.c.id)
                query = query.where(place < sa.tuple_(sa.literal(last.created_at), sa.literal(last.id)))
            query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
            return [read_job(row) for row in db.execute(query).mappings()]

    def move(
        self, job_id: str, to: JobStatus, *, only_from: Iterable[JobStatus] | None = None, attempt: int | None = None,
        message: str = "", level: str = "info", **fields: Any,
    ) -> TrainingJob | None:  # fmt: skip
        """The job after a move, or None when it is in no status from which it may move there, or at another attempt.

        None is what makes two movers safe: the second one sees that the first was there. `fields`: further columns to set.
        """
        with self.write() as db:
            return move(
                db, job_id, to, only_from=only_from, attempt=attempt, message=message, level=level, fields=fields
            )

    def wish(self, job_id: str, wish: Wish | None, *, tenant: str | None = None) -> TrainingJob:
        """Asks of a live job that it be cancelled or paused; a queued or paused one moves at once. A cancel is not taken back by a pause.

        Raises NotFoundError, UserError when it has ended.
        """
        with self.write() as db:
            job = _job(db, job_id, tenant=tenant)
            if job.has_ended:
                raise UserError(f"{job_id} has {job.status}", why=f"A job that has ended cannot be asked to {wish}.")
            to: JobStatus = "cancelled" if wish == "cancel" else "paused"
            if not job.is_live:
                return move(db, job_id, to, message=f"{to} before it ran") or job
            if job.wish != "cancel" and wish is not None:
                db.execute(sa.update(jobs).where(jobs.c.id == job_id).values(wish=wish))
                add_event(db, job_id, f"asked to {wish}; the run is told", data={"wish": wish})
            return _job(db, job_id)

    def progress(self, job_id: str, *, attempt: int, **fields: Any) -> bool:
        """Writes down how far a live job is (the columns in PROGRESS). False when the job is no longer live at this attempt."""
        if unknown := set(fields) - set(PROGRESS):
            raise ValueError(f"not columns of progress: {sorted(unknown)}")
        here = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.status.in_(LIVE))
        with self.write() as db:
            return bool(db.execute(here.values(**fields)).rowcount)

    def set_run(self, job_id: str, *, attempt: int, run_id: str) -> bool:
        """Writes down the Dagster run of an attempt. False when another run is known for it."""
        free = sa.or_(jobs.c.run_id.is_(None), jobs.c.run_id == run_id)
        here = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.attempt == attempt, free)
        with self.write() as db:
            return bool(db.execute(here.values(run_id=run_id)).rowcount)

    def counts(self, tenant: str | None = None) -> dict[str, int]:
        """Status -> number of jobs."""
        with self.read() as db:
            return _counts(db, tenant)


def move(
    db: sa.Connection, job_id: str, to: JobStatus, *, only_from: Iterable[JobStatus] | None = None, attempt: int | None = None,
    message: str = "", level: str = "info", fields: Mapping[str, Any] | None = None,
) -> TrainingJob | None:  # fmt: skip
    """As Jobs.move, inside a transaction."""
    job, moment = _job(db, job_id), now()
    allowed = set(NEXT if only_from is None else only_from)
    if job.status not in allowed or to not in NEXT[job.status] or attempt not in (None, job.attempt):
        return None
    if to == "queued" and job.wish is not None:  # asked for while its run was lost: carried out, not forgotten
        return None
    values: dict[str, Any] = {k: _json(v) if k in JSON_COLUMNS else v for k, v in (fields or {}).items()}
    values |= {"status": to, **_stamps(job, to, moment)}
    here = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.status == job.status, jobs.c.attempt == job.attempt)
    if not db.execute(here.values(**values)).rowcount:
        return None
    after = _job(db, job_id)
    _enter(db, after, moment)
    add_event(db, job_id, message or f"the job is {to}", level=level, data={"status": to})
    if to in TOLD:
        enqueue(db, job.tenant, TOLD[to], data={"id": job_id})
    return after


def add_event(
    db: sa.Connection, job_id: str, message: str, *, level: str = "info", kind: str = "message",
    data: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Adds an event inside a transaction and returns its id."""
    row = {"job_id": job_id, "created_at": now(), "level": level, "type": kind, "message": message}
    return db.execute(
        sa.insert(job_events).values(**row, data=_json(data or {})).returning(job_events.c.id)
    ).scalar_one()


def _stamps(job: TrainingJob, to: JobStatus, moment: str) -> dict[str, Any]:
    """The columns that follow from a move: a new launch is a new attempt without a run, and an end ends the wish."""
    if to == "provisioning" and job.status == "queued":
        return {"attempt": job.attempt + 1, "run_id": None, "released_at": moment}
    if to == "queued":
        return {"queued_at": moment, "wish": None}
    if to in ENDED or to == "paused":
        return {"wish": None, **({"finished_at": moment} if to in ENDED else {})}
    if to == "running" and job.started_at is None:
        return {"started_at": moment}
    return {}


def _enter(db: sa.Connection, job: TrainingJob, moment: str) -> None:
    """Ends the open interval of a job that has moved and begins the next; a state that ends a job begins none."""
    still = (job_intervals.c.job_id == job.id, job_intervals.c.ended_at.is_(None))
    db.execute(sa.update(job_intervals).where(*still).values(ended_at=moment, to_step=job.step))
    if job.has_ended:
        return
    place = job.placement
    row = {
        "job_id": job.id, "tenant": job.tenant, "attempt": job.attempt, "state": job.status, "started_at": moment,
        "gpu": place.get("gpu"), "gpus": int(place.get("processes") or 1) * int(place.get("nodes") or 1),
        "spot": int(bool(place.get("spot"))), "from_step": job.step,
    }  # fmt: skip
    db.execute(sa.insert(job_intervals).values(row))


def _known(db: sa.Connection, tenant: str, *, key: str, request_sha256: str) -> str | None:
    where = (idempotency.c.tenant == tenant, idempotency.c.key == key)
    row = db.execute(sa.select(idempotency).where(*where)).first()
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise IdempotencyMismatch(
            f"the Idempotency-Key {key!r} was used for another request",
            why="The same key promises the same job.",
            cure="send a new key with a new request",
        )
    return row.object_id


def _counts(db: sa.Connection, tenant: str | None) -> dict[str, int]:
    query = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
    if tenant is not None:
        query = query.where(jobs.c.tenant == tenant)
    return {str(row[0]): int(row[1]) for row in db.execute(query)}


def _job(db: sa.Connection, job_id: str, *, tenant: str | None = None) -> TrainingJob:
    row = db.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
    if row is None or tenant not in (None, row["tenant"]):
        raise NotFoundError(f"no fine-tuning job {job_id!r}", cure="list the jobs of this key")
    return read_job(row)


def read_job(row: Any) -> TrainingJob:
    """The job of a row of the table."""
    values = dict(row)
    for name in JSON_COLUMNS:
        values[name] = None if values[name] is None else json.loads(values[name])
    return TrainingJob(**values)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, allow_nan=False, sort_keys=True)
