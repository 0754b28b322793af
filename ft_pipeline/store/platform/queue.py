"""What the queue reads and does in one transaction: who waits and who runs, releasing some of them, what a run reports of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.fingerprint import sha256_json
from ft_pipeline.store.platform.jobs import add_event, move
from ft_pipeline.store.platform.rows import LIVE, JobStatus, TrainingJob
from ft_pipeline.store.platform.tables import job_checkpoints, job_intervals, job_metrics, jobs, tenants

RELEASED = "a place is free: the run is being started"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A job in `queued`."""

    id: str
    tenant: str
    line: str
    tier: int
    queued_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A live job: it has a place."""

    id: str
    tenant: str
    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueView:
    """The whole queue at one moment."""

    waiting: Sequence[Waiting] = ()
    running: Sequence[Running] = ()
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """Tenant -> jobs that it may run at once; None for no limit."""
    suspended: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that a run has told of."""

    step: int
    place: str
    metrics: Mapping[str, Any]


@dataclass(kw_only=True, slots=True)
class Observation:
    """What a run has told since the last time: all of it goes into one transaction."""

    status: JobStatus | None = None
    message: str = ""
    """Of the move into `status`."""
    progress: dict[str, Any] = field(default_factory=dict)
    """Columns of jobs.PROGRESS."""
    points: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Step -> its metrics."""
    checkpoints: list[SavedCheckpoint] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    """(level, sentence): become events."""

    def __bool__(self) -> bool:
        return bool(self.status or self.progress or self.points or self.checkpoints or self.said)


class Queue(Database):
    """The outbox and its readers."""

    def queue_view(self) -> QueueView:
        """Who waits and who runs. 1,000 waiting jobs: 8 ms."""
        with self.snapshot() as db:
            return _view(db)

    def release(self, choose: Callable[[QueueView], Sequence[str]]) -> list[TrainingJob]:
        """Moves the jobs that `choose` names into `provisioning`, each a new attempt without a run.

        Choosing and moving are one transaction of the only writer: two dispatchers never go over a limit together.
        """
        if not choose(self.queue_view()):
            return []
        with self.write() as db:
            moved = [
                move(db, chosen, "provisioning", only_from=("queued",), message=RELEASED)
                for chosen in choose(_view(db))
            ]
        return [job for job in moved if job is not None]

    def observe(self, job_id: str, seen: Observation, *, attempt: int) -> bool:
        """Writes down what a run tells of itself. False when the job is no longer live at this attempt: then nothing is written."""
        here = (jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.status.in_(LIVE))
        with self.write() as db:
            status = db.execute(sa.select(jobs.c.status).where(*here)).scalar()
            if status is None:
                return False
            moves = seen.status is not None and seen.status != status
            # the interval that ends has the steps that were made in it, none while nothing trained
            if moves and status in ("provisioning", "preempted"):
                _move(db, job_id, seen, attempt=attempt)
            if seen.progress:
                db.execute(sa.update(jobs).where(*here).values(**seen.progress))
            if moves and status not in ("provisioning", "preempted"):
                _move(db, job_id, seen, attempt=attempt)
            _add_points(db, (job_id, attempt), seen.points)
            for saved in seen.checkpoints:
                _add_checkpoint(db, job_id, saved)
            for level, sentence in seen.said:
                add_event(db, job_id, sentence, level=level)
            return True

    def fruitless_launches(self, job_id: str) -> int:
        """Launches in a row, up to the present one, that made no newer step. One that was paused on wish ends the row."""
        column = job_intervals.c
        query = sa.select(column.attempt, column.state, column.to_step).where(column.job_id == job_id)
        reached: dict[int, int] = {}
        paused: set[int] = set()
        with self.read() as db:
            here = db.execute(sa.select(jobs.c.attempt, jobs.c.step).where(jobs.c.id == job_id)).one()
            reached[here.attempt] = here.step or 0
            for attempt, state, to_step in db.execute(query):
                reached[attempt] = max(reached.get(attempt, 0), to_step or 0)
                paused |= {attempt} if state == "paused" else set()
        count = 0
        for attempt in sorted((n for n in reached if n > 0), reverse=True):
            before = max((step for n, step in reached.items() if n < attempt), default=0)
            if attempt in paused or reached[attempt] > before:
                break
            count += 1
        return count


def _move(db: sa.Connection, job_id: str, seen: Observation, *, attempt: int) -> None:
    if seen.status is not None:
        move(db, job_id, seen.status, only_from=LIVE, attempt=attempt, message=seen.message)


def _view(db: sa.Connection) -> QueueView:
    waits = (jobs.c.id, jobs.c.tenant, jobs.c.line, jobs.c.tier, jobs.c.queued_at)
    queued = tuple(
        Waiting(id=r.id, tenant=r.tenant, line=r.line, tier=r.tier, queued_at=r.queued_at)
        for r in db.execute(sa.select(*waits).where(jobs.c.status == "queued"))
    )
    live = db.execute(sa.select(jobs.c.id, jobs.c.tenant, jobs.c.line).where(jobs.c.status.in_(LIVE)))
    running = tuple(Running(id=r.id, tenant=r.tenant, line=r.line) for r in live)
    limits: dict[str, int | None] = {}
    suspended = set()
    for name, said, since in db.execute(sa.select(tenants.c.id, tenants.c.limits, tenants.c.suspended_at)):
        limits[name] = json.loads(said).get("concurrent_jobs")
        suspended |= {name} if since else set()
    return QueueView(waiting=queued, running=running, limits=limits, suspended=frozenset(suspended))


def _add_points(db: sa.Connection, of: tuple[str, int], points: Mapping[int, Mapping[str, Any]]) -> None:
    """Adds metrics of steps; a step that is there already stays, because a run's messages may be read again."""
    job_id, attempt = of
    there = sa.select(job_metrics.c.step).where(
        job_metrics.c.job_id == job_id, job_metrics.c.attempt == attempt, job_metrics.c.step.in_(list(points))
    )
    known = set(db.execute(there).scalars()) if points else set()
    rows = [
        {"job_id": job_id, "attempt": attempt, "step": step, "values": json.dumps(values), "created_at": now()}
        for step, values in points.items()
        if step not in known
    ]
    if rows:
        db.execute(sa.insert(job_metrics), rows)


def _add_checkpoint(db: sa.Connection, job_id: str, saved: SavedCheckpoint) -> None:
    """Once for each step of a job, with its event."""
    own = "ftckpt-" + sha256_json([job_id, saved.step])[:24]
    if db.execute(sa.select(job_checkpoints.c.id).where(job_checkpoints.c.id == own)).first():
        return
    row = {"id": own, "job_id": job_id, "step": saved.step, "place": saved.place, "metrics": json.dumps(saved.metrics)}
    db.execute(sa.insert(job_checkpoints).values(**row, created_at=now()))
    db.execute(sa.update(jobs).where(jobs.c.id == job_id).values(checkpoint=saved.place))
    add_event(db, job_id, f"checkpoint after step {saved.step}", data={"checkpoint": own, "step": saved.step})
