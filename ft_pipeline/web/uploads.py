"""/v1/uploads: large files in parts, as the official client's `uploads.upload_file_chunked` sends them; broken connections cost one part."""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ft_pipeline.errors import NotFoundError, StorageError
from ft_pipeline.store.blobs import pieces_at, put_at
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.paths import part_path
from ft_pipeline.store.platform.uploads import NewUpload, Part, UploadRow, pending
from ft_pipeline.web.arrivals import Arrival, Check, arriving
from ft_pipeline.web.auth import Reader, Submitter
from ft_pipeline.web.file_views import PartObject, Upload, part_view, upload_view
from ft_pipeline.web.intake import Label, check_room, checked_purpose, expiry, in_seconds, label_of, new_id, take_in
from ft_pipeline.web.multipart import read_form
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.refusals import Refusal, TooLarge
from ft_pipeline.web.validation import Validator, forget_parts

LIVES_SECONDS = 24 * 3600
PART_BYTES = 64 << 20
MOST_PART_IDS = 10_000
MD5 = re.compile("[0-9a-f]{32}", re.IGNORECASE)
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "additionalProperties": False,
                    "properties": {"data": {"type": "string", "format": "binary", "description": "At most 64 MiB"}},
                }
            }
        },
    }
}


class ExpiresAfter(BaseModel):
    """When the file goes by itself."""

    model_config = ConfigDict(extra="forbid")
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class UploadBody(BaseModel):
    """What is going to be sent."""

    model_config = ConfigDict(extra="forbid")
    bytes: Annotated[int, Field(ge=1, le=1 << 50)]
    filename: Annotated[str, Field(max_length=65_536)]
    mime_type: Annotated[str, Field(max_length=255)]
    """Not looked at: the content decides."""
    purpose: Annotated[str, Field(max_length=64)]
    expires_after: ExpiresAfter | None = None


class CompleteBody(BaseModel):
    """The parts in order."""

    model_config = ConfigDict(extra="forbid")
    part_ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MOST_PART_IDS)]
    md5: Annotated[str | None, Field(max_length=64)] = None


def router(platform: Platform, validator: Validator) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/uploads", tags=["files"])
    _add_frame(routes, platform)
    _add_parts(routes, platform, validator)
    return routes


def _add_frame(routes: APIRouter, platform: Platform) -> None:
    @routes.post("")
    def create(body: UploadBody, caller: Submitter) -> Upload:
        limits = platform.records.tenant(caller.tenant).limits
        new = NewUpload(
            id=new_id("upload_"), tenant=caller.tenant, filename=label_of(body.filename), purpose=checked_purpose(body.purpose),
            mime_type=re.sub("[^ -~]", "", body.mime_type), bytes=body.bytes, expires_at=in_seconds(LIVES_SECONDS),
            file_expires_seconds=body.expires_after.seconds if body.expires_after else None,
        )  # fmt: skip
        room = lambda stored: check_room(limits, body.bytes, stored)  # noqa: E731
        return upload_view(platform.records.add_upload(new, actor=caller.actor, room=room))

    @routes.get("/{upload_id}")
    def retrieve(upload_id: str, caller: Reader) -> Upload:
        row = platform.records.upload(upload_id, tenant=caller.tenant)
        return _seen(platform, row, parts=list(platform.records.parts(upload_id).values()))

    @routes.post("/{upload_id}/cancel")
    def cancel(upload_id: str, caller: Submitter) -> Upload:
        row = platform.records.cancel_upload(upload_id, tenant=caller.tenant, actor=caller.actor)
        forget_parts(platform, upload_id)
        return upload_view(row)


def _add_parts(routes: APIRouter, platform: Platform, validator: Validator) -> None:
    @routes.post("/{upload_id}/parts", openapi_extra=FORM)
    async def add_part(upload_id: str, request: Request, caller: Submitter) -> PartObject:
        row = pending(await run_sync(lambda: platform.records.upload(upload_id, tenant=caller.tenant)))
        with arriving(platform.settings.work, _at_most(min(PART_BYTES, row.bytes))) as arrival:
            await read_form(request, arrival, file_field="data", fields=())
            return part_view(await run_sync(_kept, platform, row, arrival))

    @routes.post("/{upload_id}/complete")
    def complete(upload_id: str, body: CompleteBody, caller: Submitter) -> Upload:
        row = platform.records.upload(upload_id, tenant=caller.tenant)
        if row.status == "completed":  # an answer that got lost is asked for again
            return _seen(platform, row)
        parts = _in_order(platform, pending(row), body)
        with arriving(platform.settings.work, _at_most(row.bytes)) as arrival:
            _joined(platform, parts, arrival)
            _check_whole(row, arrival, body)
            _complete(platform, validator, (caller, row, arrival))
        forget_parts(platform, upload_id)
        return _seen(platform, platform.records.upload(upload_id, tenant=caller.tenant))


def _complete(platform: Platform, validator: Validator, what: tuple[Caller, UploadRow, Arrival]) -> None:
    """Makes the file. When another request was faster there is nothing left to do."""
    caller, row, arrival = what
    label = Label(filename=row.filename, purpose=row.purpose, expires_at=expiry(row.file_expires_seconds))
    made = take_in(platform, caller, arrival, label=label, upload_id=row.id)
    if made is not None:
        validator.take(made)


def _seen(platform: Platform, row: UploadRow, *, parts: list[Part] | None = None) -> Upload:
    file = None
    if row.file_id is not None:
        with contextlib.suppress(NotFoundError):  # it may be deleted by now
            file = platform.records.file(row.file_id, tenant=row.tenant)
    return upload_view(row, file, parts=parts)


def _at_most(limit: int) -> Check:
    def check(size: int) -> None:
        if size > limit:
            raise TooLarge(
                f"more than {limit:,} bytes",
                code="part_too_large",
                param="data",
                why="A part has at most 64 MiB, and no more than the whole upload promises.",
                cure="send smaller parts (upload_file_chunked: part_size)",
            )

    return check


def _kept(platform: Platform, row: UploadRow, arrival: Arrival) -> Part:
    """The part, in the store first and then in the rows."""
    part = Part(
        id=f"part_{secrets.token_hex(12)}", upload_id=row.id, bytes=arrival.size, sha256=arrival.sha256, created_at=now()
    )  # fmt: skip
    place = part_path(row.id, part.id)
    put_at(platform.store.bucket, arrival.path, place)
    try:
        platform.records.add_part(part, tenant=row.tenant, limit=2 * row.bytes + PART_BYTES)
    except BaseException:
        platform.store.bucket.remove(place)
        raise
    return part


def _in_order(platform: Platform, row: UploadRow, body: CompleteBody) -> list[Part]:
    known = platform.records.parts(row.id)
    unknown = next((part for part in body.part_ids if part not in known), None)
    if unknown is not None:
        raise _wrong_parts(f"{row.id} has no part {unknown[:60]!r}")
    if len(set(body.part_ids)) != len(body.part_ids):
        raise _wrong_parts("a part is named twice")
    parts = [known[part] for part in body.part_ids]
    if (total := sum(part.bytes for part in parts)) != row.bytes:
        raise _wrong_parts(f"the parts have {total:,} bytes, the upload promised {row.bytes:,}")
    return parts


def _joined(platform: Platform, parts: list[Part], arrival: Arrival) -> None:
    for part in parts:
        try:
            for piece in pieces_at(platform.store.bucket, part_path(part.upload_id, part.id)):
                arrival.write(piece)
        except FileNotFoundError:
            raise StorageError(
                f"the bytes of {part.id} are not in the store", cure="send this part again and complete with its new id"
            ) from None
    arrival.finish()


def _check_whole(row: UploadRow, arrival: Arrival, body: CompleteBody) -> None:
    if arrival.size != row.bytes:
        raise _wrong_parts(f"the parts hold {arrival.size:,} bytes, the upload promised {row.bytes:,}")
    if body.md5 is not None and (not MD5.fullmatch(body.md5) or body.md5.lower() != arrival.md5):
        raise Refusal(
            f"the bytes have md5 {arrival.md5}, {body.md5!r} was expected",
            code="md5_mismatch",
            param="md5",
            why="Something changed on the way.",
            cure="look at the parts of GET /v1/uploads/{id}, send the damaged one again, and complete with its new id",
        )


def _wrong_parts(what: str) -> Refusal:
    return Refusal(
        what,
        code="invalid_parts",
        param="part_ids",
        cure="GET /v1/uploads/{id} lists the parts that arrived, with their sizes",
    )
