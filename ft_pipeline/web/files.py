"""/v1/files: what a tenant trains on. Bodies stream to the store; the name a file came with is a label and never a path."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from ft_pipeline.store.blobs import Blobs
from ft_pipeline.store.platform.files import FileRow
from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.web.arrivals import Arrival, Check, arriving
from ft_pipeline.web.auth import Reader, Submitter
from ft_pipeline.web.file_views import FileDeleted, FileObject, Validation, file_view, validation_view
from ft_pipeline.web.intake import (
    PURPOSES,
    Label,
    check_room,
    checked_purpose,
    expiry,
    label_of,
    missing_bytes,
    take_in,
)
from ft_pipeline.web.job_views import Page, page
from ft_pipeline.web.multipart import Form, read_form
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.validation import Validator

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
Limit = Annotated[int, Query(ge=1, le=10_000)]
After = Annotated[str | None, Query(max_length=128, description="Id of the last file of the page before.")]
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines (.gz, .zst) or Parquet"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                    },
                }
            }
        },
    }
}  # fmt: skip
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The bytes as they were uploaded."}
}


def router(platform: Platform, validator: Validator) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/files", tags=["files"])
    _add_create(routes, platform, validator)
    _add_sights(routes, platform)
    return routes


def _add_create(routes: APIRouter, platform: Platform, validator: Validator) -> None:
    @routes.post("", openapi_extra=FORM)
    async def create(request: Request, caller: Submitter) -> FileObject:
        limits, stored = await run_sync(_limits, platform, caller)
        with arriving(platform.settings.work, checks(limits, stored)) as arrival:
            form = await read_form(request, arrival, file_field="file", fields=FIELDS)
            return file_view(await run_sync(_made, platform, validator, (caller, form, arrival)))

    @routes.delete("/{file_id}")
    def delete(file_id: str, caller: Submitter) -> FileDeleted:
        platform.records.delete_file(file_id, tenant=caller.tenant, actor=caller.actor)
        return FileDeleted(id=file_id)


def _add_sights(routes: APIRouter, platform: Platform) -> None:
    @routes.get("")
    def files(
        caller: Reader, *, after: After = None, limit: Limit = 10_000, order: Literal["asc", "desc"] = "desc",
        purpose: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Page[FileObject]:  # fmt: skip
        if purpose not in (None, *PURPOSES):
            return page([], limit=limit)
        found = platform.records.find_files(
            tenant=caller.tenant, purpose=purpose, after=after, limit=limit + 1, ascending=order == "asc"
        )
        return page([file_view(row) for row in found], limit=limit)

    @routes.get("/{file_id}")
    def retrieve(file_id: str, caller: Reader) -> FileObject:
        return file_view(platform.records.file(file_id, tenant=caller.tenant))

    @routes.get("/{file_id}/report")
    def report(file_id: str, caller: Reader) -> Validation:
        return validation_view(platform.records.file(file_id, tenant=caller.tenant))

    @routes.get("/{file_id}/content", responses=BYTES, response_class=StreamingResponse)
    def content(file_id: str, caller: Reader) -> StreamingResponse:
        return _streamed(platform, platform.records.file(file_id, tenant=caller.tenant))


def checks(limits: Limits, stored: int) -> Check:
    """Refuses a body at the byte that passes a limit of the tenant."""
    return lambda size: check_room(limits, size, stored)


def _limits(platform: Platform, caller: Caller) -> tuple[Limits, int]:
    return platform.records.tenant(caller.tenant).limits, platform.records.announced_bytes(caller.tenant)


def _made(platform: Platform, validator: Validator, what: tuple[Caller, Form, Arrival]) -> FileRow:
    caller, form, arrival = what
    seconds = form.fields.get("expires_after[seconds]")
    label = Label(
        filename=label_of(form.filename),
        purpose=checked_purpose(form.fields.get("purpose")),
        expires_at=expiry(
            int(seconds)
            if seconds and seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
            else -1
            if seconds
            else None,
            form.fields.get("expires_after[anchor]", "created_at"),
        ),
    )
    made = take_in(platform, caller, arrival, label=label)
    if made is None:
        raise RuntimeError("a file without an upload is always made")
    return validator.take(made)


def _streamed(platform: Platform, row: FileRow) -> StreamingResponse:
    blobs = Blobs(platform.store)
    if blobs.size(row.blob_sha256) != row.bytes:
        raise missing_bytes(row)
    headers = {
        "Content-Length": str(row.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}",
        "ETag": f'"{row.blob_sha256}"',
    }
    return StreamingResponse(blobs.pieces(row.blob_sha256), media_type="application/octet-stream", headers=headers)
