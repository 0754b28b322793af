"""What the platform's tables hand out: training jobs with their states, their events, tenants with their limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

JobStatus = Literal[
    "queued", "provisioning", "running", "checkpointing", "preempted", "evaluating", "paused", "succeeded", "failed", "cancelled"
]  # fmt: skip
Wish = Literal["cancel", "pause"]
ENDED: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
LIVE: tuple[JobStatus, ...] = ("provisioning", "running", "checkpointing", "preempted", "evaluating")
"""A run of the job exists or is about to; it takes a place among those that run at once."""
NEXT: Mapping[JobStatus, tuple[JobStatus, ...]] = {
    "queued": ("provisioning", "paused", "cancelled", "failed"),
    "provisioning": ("running", "evaluating", "preempted", "queued", "paused", "succeeded", "failed", "cancelled"),
    "running": ("checkpointing", "preempted", "evaluating", "queued", "paused", "succeeded", "failed", "cancelled"),
    "checkpointing": ("running", "preempted", "evaluating", "queued", "paused", "succeeded", "failed", "cancelled"),
    "preempted": ("provisioning", "running", "evaluating", "queued", "paused", "failed", "cancelled"),
    "evaluating": ("running", "queued", "paused", "succeeded", "failed", "cancelled"),
    "paused": ("queued", "cancelled"),
    "succeeded": (),
    "failed": (),
    "cancelled": (),
}
"""Status -> what may follow. Back to `queued`: its run was lost before it trained, or a paused job goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a tenant may use. 0 means nothing; None means no limit."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic's name
    concurrent_jobs: int | None = 2
    queued_jobs: int | None = 200
    gpu_hours_a_month: float | None = None
    storage_bytes: int | None = None
    money_a_month: float | None = None
    """In the price book's currency. At 80% a warning, at 100% nothing more is released and live jobs are paused."""
    requests_a_minute: int | None = 600
    file_bytes: int | None = 2 * 1024**3
    """Of one file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """Who shares the platform with others."""

    id: str
    tier: int
    """Weight in the queue: 10 for most, more goes earlier."""
    limits: Limits
    created_at: str
    suspended_at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job before it has a place in the queue."""

    id: str
    """`ftjob-` and 24 hex digits."""
    tenant: str
    line: str
    """`tenant/name`: the model line and the partition."""
    tier: int
    recipe: str
    """JSON of the whole recipe: what the run uses, whatever the folders say."""
    recipe_sha256: str
    request: Mapping[str, Any]
    """The body as it was asked."""
    placement: Mapping[str, Any]
    estimate: Mapping[str, Any]
    """What the plan said at submission: money, hours, steps; empty where nothing could be said."""
    base_model: str
    base_revision: str | None = None
    training_file: str
    """File id, or a dataset's digest."""
    validation_file: str | None = None
    created_by: str
    """The key's prefix, or a person of the command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A row of `jobs`."""

    id: str
    tenant: str
    line: str
    status: JobStatus
    wish: Wish | None
    attempt: int
    """Launches so far; 0 while it was never released."""
    run_id: str | None
    tier: int
    recipe: str
    recipe_sha256: str
    request: Mapping[str, Any]
    placement: Mapping[str, Any]
    estimate: Mapping[str, Any]
    base_model: str
    base_revision: str | None
    training_file: str
    validation_file: str | None
    created_by: str
    created_at: str
    queued_at: str
    released_at: str | None
    started_at: str | None
    finished_at: str | None
    step: int | None
    planned_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    trained_tokens: int | None
    expected_end: str | None
    checkpoint: str | None
    fine_tuned_model: str | None
    """`tenant/name@N` once it is registered."""
    promotion: Mapping[str, Any] | None
    """{stage, blocked, verdict, reason, gates}: a gate that fails leaves a job that succeeded and a promotion that is blocked."""
    error: Mapping[str, Any] | None
    """{code, message, param}."""

    @property
    def run_key(self) -> str:
        """Of the present launch: Dagster starts one run for each."""
        return f"{self.id}#{self.attempt}"

    @property
    def is_live(self) -> bool:
        """A run exists or is about to."""
        return self.status in LIVE

    @property
    def has_ended(self) -> bool:
        """Nothing follows."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """Something that happened to a job; `id` grows with time over all jobs."""

    id: int
    job_id: str
    created_at: str
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCheckpoint:
    """A checkpoint that a run reported."""

    id: str
    job_id: str
    step: int
    place: str
    metrics: Mapping[str, Any]
    created_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """How long a job was in a state, and on what. `ended_at` None: it is in it now."""

    job_id: str
    tenant: str
    attempt: int
    state: JobStatus
    started_at: str
    ended_at: str | None
    gpu: str | None
    gpus: int
    spot: bool
    from_step: int | None
    to_step: int | None
