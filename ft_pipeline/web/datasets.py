"""/v1/datasets/validate: the report of a file made now, with real tokens where the base model's tokenizer is in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from ft_pipeline.acquire.artifact import BASE_KIND, TOKENIZER
from ft_pipeline.acquire.hub import SCHEME, parse
from ft_pipeline.jobs.compose import base_of
from ft_pipeline.jobs.offer import Base
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Manifest
from ft_pipeline.web.auth import Submitter
from ft_pipeline.web.job_intake import offer_of
from ft_pipeline.web.platform import Platform
from ft_pipeline.web.refusals import Refusal
from ft_pipeline.web.report import refusal_in
from ft_pipeline.web.validation import Validator

MOST_BYTES = 256 << 20
"""Of a file that is read while its owner waits, about a minute; larger ones have the report of their upload."""


class ValidateBody(BaseModel):
    """What is to be read."""

    model_config = ConfigDict(extra="forbid")
    file_id: Annotated[str, Field(max_length=64)]
    base_model: Annotated[str | None, Field(max_length=256)] = None
    """Counts with its tokenizer when it is in the store: after the first job on it."""


class DatasetReport(BaseModel):
    """What is in it."""

    object: Literal["dataset.report"] = "dataset.report"
    file_id: str
    valid: bool
    reason: str | None
    """Why nothing can be trained on it."""
    report: dict[str, Any]


def router(platform: Platform, validator: Validator) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/datasets", tags=["files"])

    @routes.post("/validate")
    def validate(body: ValidateBody, caller: Submitter) -> DatasetReport:
        file = platform.records.file(body.file_id, tenant=caller.tenant)
        if file.bytes > MOST_BYTES:
            raise Refusal(
                f"{file.id} has {file.bytes:,} bytes, {MOST_BYTES:,} are read while you wait",
                code="file_too_large",
                param="file_id",
                cure=f"GET /v1/files/{file.id}/report: it was made after the upload",
            )
        counter = None
        if body.base_model is not None:
            base = base_of(body.base_model, offer_of(platform.settings.offer))
            counter = tokenizer_in(platform.store, body.base_model, base)
        report = validator.report(file, tokenizer=counter)
        reason = refusal_in(report)
        return DatasetReport(file_id=file.id, valid=reason is None, reason=reason, report=report)

    return routes


def tokenizer_in(store: Store, name: str, base: Base) -> tuple[str, Path] | None:
    """Name and local path of a base model's tokenizer, the newest in the store; None when the base was never acquired."""
    found = [m for m in store.all(BASE_KIND) if TOKENIZER in m.files and _is_of(m, base)]
    if not found:
        return None
    newest = max(found, key=lambda manifest: manifest.created_at)
    return name, store.fetch_file(newest.ref, TOKENIZER)


def _is_of(manifest: Manifest, base: Base) -> bool:
    config = manifest.config
    if base.revision is not None and base.revision not in (config.get("revision"), config.get("content")):
        return False
    if base.uri.startswith(SCHEME):
        return config.get("repo") == parse(base.uri).repo
    return manifest.execution.get("location") == base.uri
