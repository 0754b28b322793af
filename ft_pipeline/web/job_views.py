"""How a job, its events and its checkpoints look: OpenAI's objects, and under `platform` what they have no field for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from ft_pipeline.store.platform.rows import JobCheckpoint, JobEvent, TrainingJob
from ft_pipeline.web.moments import unix, unix_or_none

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
STATUS: Mapping[str, Status] = {
    "queued": "queued", "paused": "queued", "provisioning": "running", "running": "running", "checkpointing": "running",
    "preempted": "running", "evaluating": "running", "succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled",
}  # fmt: skip
"""Of the platform -> of OpenAI's client, which refuses any other word; the true one is `platform.status`."""
EVENT, CHECKPOINT = "ftevent-", "ftckpt-"
Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """A page of a list; `after` of the next one is the id of the last item."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobHyperparameters(BaseModel):
    """What "auto" became. The multiplier is null where `platform.recipe` gave the rate itself."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float | None


class JobPlatform(BaseModel):
    """What OpenAI's object has no field for."""

    status: str
    """queued, provisioning, running, checkpointing, preempted, evaluating, paused, succeeded, failed, cancelled."""
    wish: Literal["cancel", "pause"] | None
    line: str
    """`tenant/name`: the model line; each of its jobs makes the next version."""
    attempt: int
    run_id: str | None
    recipe_sha256: str
    recipe: dict[str, Any]
    """Resolved: every preset written down."""
    placement: dict[str, Any]
    estimate: dict[str, Any]
    base_revision: str | None
    queued_at: int
    waiting_for: str | None
    """What a queued job waits for, in words: a free place, its tenant's limit or budget, another job of its line."""
    started_at: int | None
    step: int | None
    planned_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    checkpoint: str | None
    promotion: dict[str, Any] | None
    """What the gate said: {stage, blocked, verdict, reason, gates}."""


class FineTuningJob(BaseModel):
    """OpenAI's `fine_tuning.job`."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: JobHyperparameters
    model: str
    organization_id: str
    result_files: list[str] = []
    seed: int
    status: Status
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None
    method: dict[str, Any] | None
    platform: JobPlatform


class Event(BaseModel):
    """OpenAI's `fine_tuning.job.event`."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class CheckpointMetrics(BaseModel):
    """Losses at the step of a checkpoint; null where none was measured."""

    step: int
    train_loss: float | None = None
    valid_loss: float | None = None
    full_valid_loss: float | None = None


class CheckpointPlatform(BaseModel):
    """Where it lies."""

    place: str
    metrics: dict[str, Any]


class Checkpoint(BaseModel):
    """OpenAI's `fine_tuning.job.checkpoint`."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int
    platform: CheckpointPlatform


def job_view(job: TrainingJob, waiting_for: str | None = None) -> FineTuningJob:
    """The object of a row."""
    recipe = json.loads(job.recipe)
    knobs = _knobs(job, recipe)
    return FineTuningJob(
        id=job.id, created_at=unix(job.created_at), error=JobError(**job.error) if job.error else None,
        fine_tuned_model=job.fine_tuned_model, finished_at=unix_or_none(job.finished_at), hyperparameters=knobs, model=job.base_model,
        organization_id=job.tenant, seed=recipe["finetune"]["seed"], status=STATUS[job.status], trained_tokens=job.trained_tokens,
        training_file=job.training_file, validation_file=job.validation_file,
        estimated_finish=unix_or_none(job.expected_end) if job.is_live else None, metadata=job.request.get("metadata"),
        method=_method(job, knobs), platform=_platform(job, recipe, waiting_for),
    )  # fmt: skip


def event_view(event: JobEvent) -> Event:
    """The object of an event."""
    return Event(
        id=f"{EVENT}{event.id}", created_at=unix(event.created_at), level=event.level, message=event.message,
        type=event.type, data=dict(event.data),
    )  # fmt: skip


def checkpoint_view(saved: JobCheckpoint, job: TrainingJob) -> Checkpoint:
    """The object of a checkpoint. Its name is no model that answers: only what passed a gate is served."""
    known = {name: saved.metrics.get(name) for name in ("train_loss", "valid_loss", "full_valid_loss")}
    known["train_loss"] = known["train_loss"] if known["train_loss"] is not None else saved.metrics.get("loss")
    return Checkpoint(
        id=saved.id, created_at=unix(saved.created_at), fine_tuned_model_checkpoint=f"{job.line}:ckpt-step-{saved.step}",
        fine_tuning_job_id=job.id, metrics=CheckpointMetrics(step=saved.step, **known), step_number=saved.step,
        platform=CheckpointPlatform(place=saved.place, metrics=dict(saved.metrics)),
    )  # fmt: skip


def page(items: Sequence[Any], *, limit: int) -> Page[Any]:
    """A page of at most `limit`, made of one more than that: the one more says that there is a next page."""
    shown = list(items[:limit])
    ends = {"first_id": shown[0].id, "last_id": shown[-1].id} if shown else {}
    return Page(data=shown, has_more=len(items) > limit, **ends)


def _platform(job: TrainingJob, recipe: dict[str, Any], waiting_for: str | None) -> JobPlatform:
    return JobPlatform(
        status=job.status, wish=job.wish, line=job.line, attempt=job.attempt, run_id=job.run_id, recipe_sha256=job.recipe_sha256,
        recipe=recipe, placement=dict(job.placement), estimate=dict(job.estimate), base_revision=job.base_revision,
        queued_at=unix(job.queued_at), waiting_for=waiting_for, started_at=unix_or_none(job.started_at), step=job.step, planned_steps=job.planned_steps,
        loss=job.loss, tokens_per_second=job.tokens_per_second, checkpoint=job.checkpoint,
        promotion=dict(job.promotion) if job.promotion else None,
    )  # fmt: skip


def _knobs(job: TrainingJob, recipe: Mapping[str, Any]) -> JobHyperparameters:
    section = recipe["finetune"]
    own_rate = "learning_rate" in ((job.request.get("platform") or {}).get("recipe") or {}).get("finetune", {})
    said = _said_knobs(job.request).get("learning_rate_multiplier")
    multiplier = None if own_rate else float(said) if said not in (None, "auto") else 1.0
    return JobHyperparameters(
        n_epochs=section["epochs"], batch_size=section["windows_per_step"], learning_rate_multiplier=multiplier
    )


def _said_knobs(request: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a request, wherever its client put them."""
    method = request.get("method")
    section = (method.get(method.get("type")) or {}) if isinstance(method, Mapping) else {}
    both = ((request.get("hyperparameters") or {}), (section.get("hyperparameters") or {}))
    return {name: value for knobs in both for name, value in knobs.items() if value is not None}


def _method(job: TrainingJob, knobs: JobHyperparameters) -> dict[str, Any] | None:
    """OpenAI's `method`. The specification's words are `supervised` but for dpo."""
    said = job.request.get("method")
    kind = said.get("type") if isinstance(said, Mapping) else "dpo" if said == "dpo" else "supervised"
    told: dict[str, Any] = knobs.model_dump()
    if kind == "dpo":
        told["beta"] = (json.loads(job.recipe)["finetune"]["preference"] or {}).get("beta")
    made: dict[str, Any] = {"hyperparameters": told}
    if kind == "reinforcement" and isinstance(said, Mapping):
        made["grader"] = said["reinforcement"]["grader"]
    return {"type": kind, str(kind): made}
