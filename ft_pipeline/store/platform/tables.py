"""The platform's tables: tenants and keys, files, jobs with their events, webhooks, usage, the audit log. Beside the catalog's, in one database."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

metadata = MetaData()


def _text(name: str, *rules: ForeignKey, nullable: bool = False, index: bool = False) -> Column[str]:
    return Column(name, Text, *rules, nullable=nullable, index=index or None)


def _maybe(name: str, *rules: ForeignKey) -> Column[str]:
    return Column(name, Text, *rules, nullable=True)


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True)


def _whole(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


def _tenant() -> Column[str]:
    return Column("tenant", Text, ForeignKey("tenants.id"), nullable=False)


tenants = Table(
    "tenants", metadata, _key("id"),
    _whole("tier"),
    _text("limits"),
    _text("created_at"),
    _maybe("suspended_at"),
)  # fmt: skip
"""tier: weight in the queue, higher goes first. limits: JSON of rows.Limits. suspended: its keys are refused."""
api_keys = Table(
    "api_keys", metadata, _key("prefix"),
    _tenant(),
    _text("name"),
    _text("hmac_sha256"),
    _text("roles"),
    _text("created_by"),
    _text("created_at"),
    _maybe("expires_at"),
    _maybe("revoked_at"),
    _maybe("last_used_at"),
)  # fmt: skip
"""prefix: the public first part of a key. hmac_sha256: HMAC(pepper, whole key). roles: JSON list."""
audit = Table(
    "audit", metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _maybe("tenant"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _text("detail"),
    _text("created_at"),
    _text("previous_sha256"),
    _text("sha256"),
)  # fmt: skip
"""Append-only and hash-chained: who did what through the API or the command line. detail: JSON."""
files = Table(
    "files", metadata, _key("id"),
    _tenant(),
    _text("blob_sha256"),
    _whole("bytes"),
    _text("filename"),
    _text("purpose"),
    _text("status"),
    _maybe("status_details"),
    _maybe("report"),
    _text("created_at"),
    _maybe("expires_at"),
    _maybe("deleted_at"),
    Index("ix_files_tenant", "tenant", "created_at"),
)  # fmt: skip
"""A tenant's name for a blob that tenants share by content. status: uploaded, processed, error. report: JSON of the validation."""
uploads = Table(
    "uploads", metadata, _key("id"),
    _tenant(),
    _text("filename"),
    _text("purpose"),
    _text("mime_type"),
    _whole("bytes"),
    _text("status"),
    _maybe("file_id"),
    _whole("file_expires_seconds", nullable=True),
    _text("created_at"),
    _text("expires_at"),
)  # fmt: skip
"""status: pending, completed, cancelled, expired. file_expires_seconds: what `expires_after` asked for the file."""
upload_parts = Table(
    "upload_parts", metadata, _key("id"),
    _text("upload_id", ForeignKey("uploads.id"), index=True),
    _whole("bytes"),
    _text("sha256"),
    _text("created_at"),
)  # fmt: skip
jobs = Table(
    "jobs", metadata, _key("id"),
    _tenant(),
    _text("line"),
    _text("status"),
    _maybe("wish"),
    _whole("attempt"),
    _maybe("run_id"),
    _whole("tier"),
    _text("recipe"),
    _text("recipe_sha256"),
    _text("request"),
    _text("placement"),
    _text("estimate"),
    _text("base_model"),
    _maybe("base_revision"),
    _text("training_file"),
    _maybe("validation_file"),
    _text("created_by"),
    _text("created_at"),
    _text("queued_at"),
    _maybe("released_at"),
    _maybe("started_at"),
    _maybe("finished_at"),
    _whole("step", nullable=True),
    _whole("planned_steps", nullable=True),
    Column("loss", Float, nullable=True),
    Column("tokens_per_second", Float, nullable=True),
    _whole("trained_tokens", nullable=True),
    _maybe("expected_end"),
    _maybe("checkpoint"),
    _maybe("fine_tuned_model"),
    _maybe("promotion"),
    _maybe("error"),
    Index("ix_jobs_tenant", "tenant", "created_at"),
    Index("ix_jobs_status", "status"),
)  # fmt: skip
"""A row in `queued` is the outbox: what the API promised in the transaction of its answer and the dispatcher has to launch.

line: `tenant/name`, the partition. wish: NULL, cancel or pause, asked for while it is live. attempt: launches so far.
request, placement, estimate, promotion, error: JSON. promotion: what the gate said and in which stage the version is.
"""
job_events = Table(
    "job_events", metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    _text("created_at"),
    _text("level"),
    _text("type"),
    _text("message"),
    _text("data"),
    Index("ix_job_events_job", "job_id", "id"),
)  # fmt: skip
"""level: info, warn, error. type: message or metrics. data: JSON."""
job_metrics = Table(
    "job_metrics", metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    _whole("attempt"),
    _whole("step"),
    _text("values"),
    _text("created_at"),
    PrimaryKeyConstraint("job_id", "attempt", "step"),
)  # fmt: skip
"""Keyed by attempt: a resumed run makes steps again. values: JSON of loss, grad_norm, learning_rate, tokens_per_second."""
job_checkpoints = Table(
    "job_checkpoints", metadata, _key("id"),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False, index=True),
    _whole("step"),
    _text("place"),
    _text("metrics"),
    _text("created_at"),
)  # fmt: skip
job_intervals = Table(
    "job_intervals", metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False, index=True),
    _tenant(),
    _whole("attempt"),
    _text("state"),
    _text("started_at"),
    _maybe("ended_at"),
    _maybe("gpu"),
    _whole("gpus"),
    _whole("spot"),
    _whole("from_step", nullable=True),
    _whole("to_step", nullable=True),
    Index("ix_job_intervals_tenant", "tenant", "started_at"),
)  # fmt: skip
"""How long a job was in each state and on what: metering is made of these rows. The open one has no end."""
idempotency = Table(
    "idempotency", metadata,
    _tenant(),
    _text("key"),
    _text("request_sha256"),
    _text("object_id"),
    _text("created_at"),
    PrimaryKeyConstraint("tenant", "key"),
)  # fmt: skip
webhooks = Table(
    "webhooks", metadata, _key("id"),
    _tenant(),
    _text("name"),
    _text("url"),
    _text("secret"),
    _maybe("old_secret"),
    _maybe("old_secret_until"),
    _text("events"),
    _text("created_at"),
    _text("updated_at"),
    _maybe("deleted_at"),
)  # fmt: skip
"""events: JSON list of the kinds that are sent. secret: signs each delivery, shown once; the one before it signs too for a while."""
deliveries = Table(
    "deliveries", metadata, _key("id"),
    _text("webhook_id", ForeignKey("webhooks.id")),
    _text("event"),
    _text("body"),
    _whole("attempts"),
    _text("next_at"),
    _maybe("delivered_at"),
    _maybe("given_up_at"),
    _maybe("last_error"),
    _text("created_at"),
    Index("ix_deliveries_next", "next_at"),
)  # fmt: skip
"""The outbox of webhooks: written in the transaction that makes the event true."""
usage = Table(
    "usage", metadata,
    _tenant(),
    _text("model"),
    _text("day"),
    _whole("requests"),
    _whole("prompt_tokens"),
    _whole("completion_tokens"),
    Column("seconds", Float, nullable=False),
    PrimaryKeyConstraint("tenant", "model", "day"),
)  # fmt: skip
"""Answers by tenant, version and day (UTC)."""
TABLES = (
    tenants, api_keys, audit, files, uploads, upload_parts, jobs, job_events, job_metrics, job_checkpoints, job_intervals,
    idempotency, webhooks, deliveries, usage,
)  # fmt: skip
