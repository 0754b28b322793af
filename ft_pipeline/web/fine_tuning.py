"""/v1/fine_tuning/jobs: OpenAI's routes, with pause, resume, a dry run and events as they happen."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from ft_pipeline.errors import NotFoundError
from ft_pipeline.recipe import identity, recipe_sha256
from ft_pipeline.store.platform.rows import TrainingJob, Wish
from ft_pipeline.web import event_stream, job_intake
from ft_pipeline.web.auth import Reader, Submitter
from ft_pipeline.web.job_bodies import JobBody
from ft_pipeline.web.job_intake import checked_key
from ft_pipeline.web.job_views import (
    EVENT,
    Checkpoint,
    Event,
    FineTuningJob,
    JobHyperparameters,
    Page,
    checkpoint_view,
    event_view,
    job_view,
    page,
)
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.refusals import Absent, Refusal
from ft_pipeline.web.waits import Waits

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=128, description="Id of the last item of the page before.")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", description="The same key and request give the same job.")]


class PlannedStep(BaseModel):
    """One asset of the road: `reuse` or `compute`."""

    asset: str
    state: str
    why: str


class JobPlan(BaseModel):
    """What a job would do; nothing is written."""

    object: str = "fine_tuning.job.plan"
    model: str
    line: str
    hyperparameters: JobHyperparameters
    recipe: dict[str, Any]
    recipe_sha256: str
    placement: dict[str, Any]
    steps: list[PlannedStep]
    optimizer_steps: int | None
    """None until the data is curated."""
    estimate: dict[str, Any]
    cautions: list[str]
    assumptions: list[str]


def router(platform: Platform) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
    _add_jobs(routes, platform)
    _add_wishes(routes, platform)
    _add_sights(routes, platform)
    return routes


def _add_jobs(routes: APIRouter, platform: Platform) -> None:
    waits = Waits(platform)

    @routes.post("")
    def create(body: JobBody, caller: Submitter, idempotency_key: Key = None) -> FineTuningJob:
        job, _is_new = job_intake.submit(platform, caller, body, key=checked_key(idempotency_key))
        return job_view(job, waits.of(job))

    @routes.post("/plan")
    def plan(body: JobBody, caller: Submitter) -> JobPlan:
        return plan_view(job_intake.prepare(platform, caller, body))

    @routes.get("")
    def jobs(caller: Reader, after: After = None, limit: Limit = 20) -> Page[FineTuningJob]:
        if after is not None:
            own_job(platform, caller, after)
        found = platform.records.find_jobs(tenant=caller.tenant, after=after, limit=limit + 1)
        return page([job_view(job, waits.of(job)) for job in found], limit=limit)

    @routes.get("/{job_id}")
    def retrieve(job_id: str, caller: Reader) -> FineTuningJob:
        job = own_job(platform, caller, job_id)
        return job_view(job, waits.of(job))


def _add_wishes(routes: APIRouter, platform: Platform) -> None:
    @routes.post("/{job_id}/cancel")
    def cancel(job_id: str, caller: Submitter) -> FineTuningJob:
        return job_view(wish(platform, caller, job_id, asked="cancel"))

    @routes.post("/{job_id}/pause")
    def pause(job_id: str, caller: Submitter) -> FineTuningJob:
        return job_view(wish(platform, caller, job_id, asked="pause"))

    @routes.post("/{job_id}/resume")
    def resume(job_id: str, caller: Submitter) -> FineTuningJob:
        return job_view(go_on(platform, caller, job_id))


def _add_sights(routes: APIRouter, platform: Platform) -> None:
    streamed: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}, "description": "A page, or with stream=true a stream."}
    }

    @routes.get("/{job_id}/events", response_model=Page[Event], responses=streamed)
    def events(
        job_id: str, caller: Reader, request: Request, *, after: After = None, limit: Limit = 20, stream: bool = False,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    ) -> Page[Event] | Response:  # fmt: skip
        job = own_job(platform, caller, job_id)
        if stream:
            seen = event_stream.last_seen(last_event_id or after)
            sent = event_stream.stream(platform.records, job.id, after=seen, stopping=request.app.state.stopping)
            return StreamingResponse(sent, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        before = None if after is None else _number(after)
        found = platform.records.events(job.id, before=before, limit=limit + 1)
        return page([event_view(event) for event in found], limit=limit)

    @routes.get("/{job_id}/checkpoints")
    def checkpoints(job_id: str, caller: Reader, *, after: After = None, limit: Limit = 10) -> Page[Checkpoint]:
        job = own_job(platform, caller, job_id)
        found = platform.records.checkpoints(job.id, after=after, limit=limit + 1)
        return page([checkpoint_view(saved, job) for saved in found], limit=limit)


def plan_view(made: job_intake.Prepared) -> JobPlan:
    """A prepared request as the dry run shows it."""
    found, estimate = made.composed.recipe, made.plan.estimate
    knobs = {name: value for name, value in made.composed.hyperparameters.items() if name != "beta"}
    return JobPlan(
        model=made.ask.model, line=found.key, hyperparameters=JobHyperparameters(**knobs), recipe=identity(found),
        recipe_sha256=recipe_sha256(found), placement=asdict(made.placement),
        steps=[PlannedStep(**asdict(step)) for step in made.plan.steps], optimizer_steps=made.plan.optimizer_steps,
        estimate=json.loads(json.dumps(made.estimate)), cautions=[f"{c.text} {c.cure}" for c in estimate.cautions] if estimate else [],
        assumptions=list(estimate.assumptions) if estimate else [],
    )  # fmt: skip


def own_job(platform: Platform, caller: Caller, job_id: str) -> TrainingJob:
    """A job of the caller's tenant. Raises Absent, the same for another tenant's."""
    try:
        return platform.records.job(job_id, tenant=caller.tenant)
    except NotFoundError as error:
        raise Absent(error.what, code="not_found", cure=error.cure) from None


def wish(platform: Platform, caller: Caller, job_id: str, *, asked: Wish) -> TrainingJob:
    """Cancels or pauses: at once what waits, else the run is told. Raises Absent, UserError for a job that has ended."""
    own_job(platform, caller, job_id)
    job = platform.records.wish(job_id, asked, tenant=caller.tenant)
    _note(platform, caller, job, action=f"job.{asked}")
    return job


def go_on(platform: Platform, caller: Caller, job_id: str) -> TrainingJob:
    """Puts a paused job back into the queue. Raises Absent, Refusal for one that is not paused."""
    job = own_job(platform, caller, job_id)
    moved = platform.records.move(job_id, "queued", only_from=["paused"], message="the job goes on")
    if moved is None:
        raise Refusal(f"{job_id} is {job.status}, not paused", code="not_paused", why="Only a paused job can go on.")
    _note(platform, caller, moved, action="job.resume")
    return moved


def _note(platform: Platform, caller: Caller, job: TrainingJob, *, action: str) -> None:
    detail = {"status": job.status}
    platform.records.audit(actor=caller.actor, tenant=caller.tenant, action=action, subject=job.id, detail=detail)


def _number(after: str) -> int:
    digits = after.removeprefix(EVENT)
    if not digits.isdecimal() or len(digits) > 18:
        raise Absent(f"no event {after!r}", code="not_found", cure="take `after` from the page before")
    return int(digits)
