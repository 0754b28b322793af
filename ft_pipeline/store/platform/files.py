"""Files: a tenant's name for bytes that tenants share by content. The row goes when it is deleted, the bytes when nobody uses them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from ft_pipeline.errors import NotFoundError
from ft_pipeline.store.blobs import SCHEME
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.platform.audit import add_audit
from ft_pipeline.store.platform.rows import ENDED
from ft_pipeline.store.platform.tables import files, jobs, uploads

FileStatus = Literal["uploaded", "processed", "error"]
ID = re.compile(r"[A-Za-z]{2,12}[-_][0-9a-f]{24}", re.ASCII)
LISTED = [column for column in files.c if column.name != "report"]
Room = Callable[[int], None]
"""Given how many bytes a tenant has in the store; raises what refuses more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    """A file whose bytes are in the store."""

    id: str
    """`file-` and 24 hex digits."""
    tenant: str
    blob_sha256: str
    bytes: int
    filename: str
    """A label, made harmless (web/intake.py). Never a path."""
    purpose: str
    expires_at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """A row of `files`."""

    id: str
    tenant: str
    blob_sha256: str
    bytes: int
    filename: str
    purpose: str
    status: FileStatus
    status_details: str | None
    report: Mapping[str, Any] | None
    """What the validation found (web/report.py); None until it ended."""
    created_at: str
    expires_at: str | None
    deleted_at: str | None


def dataset_uri(file: FileRow) -> str:
    """What a recipe's `dataset.uri` says to train on a file; its revision is the file's sha256."""
    return f"{SCHEME}{file.blob_sha256}"


class Files(Database):
    """The files of every tenant."""

    def add_file(self, new: NewFile, *, actor: str, room: Room, upload_id: str | None = None) -> FileRow | None:
        """The file, in `uploaded`. With an upload that is pending no more (another request was faster) nothing is written: None.

        Raises what `room` raises.
        """
        with self.write() as db:
            if upload_id is not None and not _complete(db, upload_id, new.id):
                return None
            room(stored_bytes(db, new.tenant))
            row = {name: getattr(new, name) for name in NewFile.__dataclass_fields__}
            db.execute(sa.insert(files).values(**row, status="uploaded", created_at=now()))
            detail = {"filename": new.filename, "bytes": new.bytes, "sha256": new.blob_sha256}
            add_audit(db, actor=actor, tenant=new.tenant, action="file.add", subject=new.id, detail=detail)
            return _file(db, new.id, new.tenant)

    def file(self, file_id: str, *, tenant: str) -> FileRow:
        """A file of this tenant. Raises NotFoundError, the same for one that is deleted, expired or another's."""
        with self.read() as db:
            return _file(db, file_id, tenant)

    def find_files(
        self, *, tenant: str, purpose: str | None = None, after: str | None = None, limit: int, ascending: bool = False
    ) -> list[FileRow]:
        """Files of a tenant by age, without their reports; `after` is the last one of the page before. Raises NotFoundError for an `after` that is none."""
        query = sa.select(*LISTED).where(files.c.tenant == tenant, *_alive())
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        place = sa.tuple_(files.c.created_at, files.c.id)
        with self.read() as db:
            if after is not None:
                last = _file(db, after, tenant)
                here = sa.tuple_(sa.literal(last.created_at), sa.literal(last.id))
                query = query.where(place > here if ascending else place < here)
            order = [c.asc() if ascending else c.desc() for c in (files.c.created_at, files.c.id)]
            return [_read(row) for row in db.execute(query.order_by(*order).limit(limit)).mappings()]

    def delete_file(self, file_id: str, *, tenant: str, actor: str) -> None:
        """The name is gone; the bytes stay while anything uses them. Raises NotFoundError."""
        with self.write() as db:
            _file(db, file_id, tenant)
            db.execute(sa.update(files).where(files.c.id == file_id).values(deleted_at=now()))
            add_audit(db, actor=actor, tenant=tenant, action="file.delete", subject=file_id)

    def unvalidated_files(self, limit: int = 16) -> list[FileRow]:
        """Files of every tenant that wait for their validation, the oldest first."""
        query = sa.select(files).where(files.c.status == "uploaded", *_alive()).order_by(files.c.created_at)
        with self.read() as db:
            return [_read(row) for row in db.execute(query.limit(limit)).mappings()]

    def validated(
        self, file_id: str, status: FileStatus, *, report: Mapping[str, Any] | None, details: str | None = None
    ) -> bool:
        """Writes down what a validation found. False when the file was validated or deleted meanwhile."""
        here = sa.update(files).where(files.c.id == file_id, files.c.status == "uploaded", files.c.deleted_at.is_(None))
        told = None if report is None else json.dumps(report, allow_nan=False, sort_keys=True)
        with self.write() as db:
            return bool(db.execute(here.values(status=status, status_details=details, report=told)).rowcount)

    def uses_blob(self, sha256: str) -> bool:
        """True while a living file or a job that has not ended names the blob."""
        with self.read() as db:
            return is_used(db, sha256)

    def announced_bytes(self, tenant: str) -> int:
        """What a tenant's files and pending uploads count against its storage."""
        with self.read() as db:
            return stored_bytes(db, tenant)

    def release_blob(self, sha256: str, remove: Callable[[], None]) -> bool:
        """Calls `remove` when no file and no job that may still read it uses a blob; nobody can begin to use it meanwhile.

        A job that ended does not: its run copied the rows into a `raw_dataset`.
        """
        with self.write() as db:
            if is_used(db, sha256):
                return False
            remove()
            return True


def is_used(db: sa.Connection, sha256: str) -> bool:
    """As Files.uses_blob, inside a transaction."""
    of_blob = sa.select(files.c.id).where(files.c.blob_sha256 == sha256)
    if db.execute(of_blob.where(*_alive()).limit(1)).first():
        return True
    going_on = jobs.c.status.not_in(ENDED)
    # a recipe may name further files: in its mix, its suites, its word lists
    in_recipe = jobs.c.recipe.contains(f"{SCHEME}{sha256}", autoescape=True)
    named = sa.or_(jobs.c.training_file.in_(of_blob), jobs.c.validation_file.in_(of_blob), in_recipe)
    return db.execute(sa.select(jobs.c.id).where(going_on, named).limit(1)).first() is not None


def stored_bytes(db: sa.Connection, tenant: str) -> int:
    """What a tenant's files and pending uploads count against its storage: every file in full, shared or not."""
    kept = sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(files.c.tenant == tenant, *_alive())
    pending = (uploads.c.tenant == tenant, uploads.c.status == "pending", uploads.c.expires_at > now())
    coming = sa.select(sa.func.coalesce(sa.func.sum(uploads.c.bytes), 0)).where(*pending)
    return int(db.execute(kept).scalar_one()) + int(db.execute(coming).scalar_one())


def _alive() -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return files.c.deleted_at.is_(None), sa.or_(files.c.expires_at.is_(None), files.c.expires_at > now())


def _complete(db: sa.Connection, upload_id: str, file_id: str) -> bool:
    here = sa.update(uploads).where(uploads.c.id == upload_id, uploads.c.status == "pending")
    return bool(db.execute(here.values(status="completed", file_id=file_id)).rowcount)


def _file(db: sa.Connection, file_id: str, tenant: str) -> FileRow:
    # what has not the shape of an id (NUL, which PostgreSQL refuses, surrogates) never reaches the database
    where = (files.c.id == (file_id if ID.fullmatch(file_id) else ""), files.c.tenant == tenant, *_alive())
    row = db.execute(sa.select(files).where(*where)).mappings().first()
    if row is None:
        raise NotFoundError(f"no file {file_id[:60]!r}", cure="list the files of this key")
    return _read(row)


def _read(row: Any) -> FileRow:
    values: dict[str, Any] = dict(row)
    values["report"] = json.loads(values["report"]) if values.get("report") is not None else None
    return FileRow(**values)
