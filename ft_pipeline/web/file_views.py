"""How files and uploads look: OpenAI's objects, and under `platform` what they have no field for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from ft_pipeline.store.platform.files import FileRow
from ft_pipeline.store.platform.uploads import Part, UploadRow
from ft_pipeline.web.moments import unix, unix_or_none


class FilePlatform(BaseModel):
    """What OpenAI's object has no field for."""

    sha256: str
    """Of the bytes: what a recipe pins and lineage shows."""
    report: dict[str, Any] | None
    """What the validation found; null until it ended, and in lists."""


class FileObject(BaseModel):
    """OpenAI's `file`."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["fine-tune"]
    status: Literal["uploaded", "processed", "error"]
    """uploaded: waits for its validation. error: no row of it can be trained on; `status_details` says why."""
    status_details: str | None
    platform: FilePlatform


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class PartObject(BaseModel):
    """OpenAI's `upload.part`, with its size and digest."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int
    sha256: str


class UploadPlatform(BaseModel):
    """What is needed to go on after a broken connection."""

    parts: list[PartObject]


class Upload(BaseModel):
    """OpenAI's `upload`."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None
    platform: UploadPlatform | None = None


class Validation(BaseModel):
    """The report of a file."""

    object: Literal["file.report"] = "file.report"
    file_id: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    report: dict[str, Any] | None


def file_view(row: FileRow) -> FileObject:
    """A file as the client sees it."""
    return FileObject(
        id=row.id, bytes=row.bytes, created_at=unix(row.created_at), expires_at=unix_or_none(row.expires_at),
        filename=row.filename, purpose="fine-tune", status=row.status, status_details=row.status_details,
        platform=FilePlatform(sha256=row.blob_sha256, report=None if row.report is None else dict(row.report)),
    )  # fmt: skip


def part_view(part: Part) -> PartObject:
    """A part as the client sees it."""
    return PartObject(
        id=part.id, created_at=unix(part.created_at), upload_id=part.upload_id, bytes=part.bytes, sha256=part.sha256
    )


def upload_view(row: UploadRow, file: FileRow | None = None, *, parts: list[Part] | None = None) -> Upload:
    """An upload as the client sees it, with its file when it is completed."""
    return Upload(
        id=row.id, bytes=row.bytes, created_at=unix(row.created_at), expires_at=unix(row.expires_at),
        filename=row.filename, purpose=row.purpose, status=row.status, file=file_view(file) if file else None,
        platform=None if parts is None else UploadPlatform(parts=[part_view(part) for part in parts]),
    )  # fmt: skip


def validation_view(row: FileRow) -> Validation:
    """The report of a file as the client sees it."""
    report = None if row.report is None else dict(row.report)
    return Validation(file_id=row.id, status=row.status, status_details=row.status_details, report=report)
