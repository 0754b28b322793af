"""/v1/fine-tuning/jobs: the specification's own words for the same jobs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from ft_pipeline.recipe import parse
from ft_pipeline.store.blobs import digest_of as blob_digest
from ft_pipeline.store.platform.rows import TrainingJob
from ft_pipeline.web import bases, job_intake
from ft_pipeline.web.auth import Reader, Submitter
from ft_pipeline.web.fine_tuning import After, JobPlan, Key, Limit, go_on, own_job, plan_view, wish
from ft_pipeline.web.job_bodies import AliasBody
from ft_pipeline.web.job_intake import checked_key
from ft_pipeline.web.job_views import JobError, Page, page
from ft_pipeline.web.moments import unix, unix_or_none
from ft_pipeline.web.platform import Platform

STARTS_SECONDS = 60
"""A queued job is provisioned within a minute of its turn."""


class Submitted(BaseModel):
    """The specification's answer to a submission."""

    job_id: str
    status: str
    created_at: int
    estimated_start: int
    """When it was released; before that a minute from the later of now and its submission, which holds for the next in the queue."""
    base_model: str
    """`name@sha256:...`; without a digest before the base was fetched for the first time."""
    training_file_version: str
    """`file@version:...`, the first 12 hex digits of its sha256: a file never changes."""


class JobStatus(Submitted):
    """The specification's answer to a question, with what the platform knows besides."""

    id: str
    """The same as job_id: lists are paged by it."""
    step: int | None
    planned_steps: int | None
    loss: float | None
    tokens_per_sec: float | None
    estimated_completion: int | None
    checkpoint_path: str | None
    fine_tuned_model: str | None
    finished_at: int | None
    error: JobError | None
    promotion: dict[str, Any] | None


def router(platform: Platform) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/fine-tuning/jobs", tags=["fine-tuning (specification)"])

    @routes.post("")
    def create(body: AliasBody, caller: Submitter, idempotency_key: Key = None) -> Submitted:
        job, _is_new = job_intake.submit(platform, caller, body, key=checked_key(idempotency_key))
        return Submitted(**_submitted(platform, job))

    @routes.post("/plan")
    def plan(body: AliasBody, caller: Submitter) -> JobPlan:
        return plan_view(job_intake.prepare(platform, caller, body))

    @routes.get("")
    def jobs(caller: Reader, after: After = None, limit: Limit = 20) -> Page[JobStatus]:
        if after is not None:
            own_job(platform, caller, after)
        found = platform.records.find_jobs(tenant=caller.tenant, after=after, limit=limit + 1)
        return page([_status(platform, job) for job in found], limit=limit)

    @routes.get("/{job_id}")
    def retrieve(job_id: str, caller: Reader) -> JobStatus:
        return _status(platform, own_job(platform, caller, job_id))

    _add_wishes(routes, platform)
    return routes


def _add_wishes(routes: APIRouter, platform: Platform) -> None:
    @routes.post("/{job_id}/cancel")
    def cancel(job_id: str, caller: Submitter) -> JobStatus:
        return _status(platform, wish(platform, caller, job_id, asked="cancel"))

    @routes.post("/{job_id}/pause")
    def pause(job_id: str, caller: Submitter) -> JobStatus:
        return _status(platform, wish(platform, caller, job_id, asked="pause"))

    @routes.post("/{job_id}/resume")
    def resume(job_id: str, caller: Submitter) -> JobStatus:
        return _status(platform, go_on(platform, caller, job_id))


def _submitted(platform: Platform, job: TrainingJob) -> dict[str, Any]:
    found = parse(json.loads(job.recipe), origin=job.id)
    digest = bases.digest_of(platform, job.line, found.base_model)
    started = max(unix(job.queued_at), int(datetime.now(UTC).timestamp())) + STARTS_SECONDS
    return {
        "job_id": job.id,
        "status": job.status,
        "created_at": unix(job.created_at),
        "estimated_start": unix(job.released_at) if job.released_at else started,
        "base_model": f"{job.base_model}@sha256:{digest}" if digest else job.base_model,
        "training_file_version": f"{job.training_file}@version:{blob_digest(found.dataset.uri)[:12]}",
    }


def _status(platform: Platform, job: TrainingJob) -> JobStatus:
    return JobStatus(
        **_submitted(platform, job), id=job.id, step=job.step, planned_steps=job.planned_steps, loss=job.loss,
        tokens_per_sec=job.tokens_per_second, estimated_completion=unix_or_none(job.expected_end) if job.is_live else None,
        checkpoint_path=job.checkpoint, fine_tuned_model=job.fine_tuned_model, finished_at=unix_or_none(job.finished_at),
        error=JobError(**job.error) if job.error else None, promotion=dict(job.promotion) if job.promotion else None,
    )  # fmt: skip
