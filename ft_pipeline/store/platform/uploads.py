"""Uploads in parts: a promise of so many bytes that becomes a file when its parts are named in order, or is given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.platform.audit import add_audit
from ft_pipeline.store.platform.files import ID, Room, stored_bytes
from ft_pipeline.store.platform.tables import upload_parts, uploads

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewUpload:
    """What a client promises to send."""

    id: str
    """`upload_` and 24 hex digits."""
    tenant: str
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    expires_at: str
    file_expires_seconds: int | None = None
    """After which the file goes by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadRow:
    """A row of `uploads`."""

    id: str
    tenant: str
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    status: UploadStatus
    file_id: str | None
    file_expires_seconds: int | None
    created_at: str
    expires_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A row of `upload_parts`."""

    id: str
    """`part_` and 24 hex digits."""
    upload_id: str
    bytes: int
    sha256: str
    created_at: str


class Uploads(Database):
    """The uploads of every tenant."""

    def add_upload(self, new: NewUpload, *, actor: str, room: Room) -> UploadRow:
        """The upload, in `pending`. Raises what `room` raises."""
        with self.write() as db:
            room(stored_bytes(db, new.tenant))
            row = {name: getattr(new, name) for name in NewUpload.__dataclass_fields__}
            db.execute(sa.insert(uploads).values(**row, status="pending", created_at=now()))
            add_audit(db, actor=actor, tenant=new.tenant, action="upload.add", subject=new.id)
            return _upload(db, new.id, new.tenant)

    def upload(self, upload_id: str, *, tenant: str) -> UploadRow:
        """An upload of this tenant; one whose time is over is `expired`. Raises NotFoundError."""
        with self.read() as db:
            return _upload(db, upload_id, tenant)

    def add_part(self, part: Part, *, tenant: str, limit: int) -> None:
        """Writes down a part whose bytes are in the store. Raises NotFoundError, UserError: not pending, or more than `limit` bytes in all."""
        with self.write() as db:
            pending(_upload(db, part.upload_id, tenant))
            sent = sa.select(sa.func.coalesce(sa.func.sum(upload_parts.c.bytes), 0))
            total = int(db.execute(sent.where(upload_parts.c.upload_id == part.upload_id)).scalar_one()) + part.bytes
            if total > limit:
                raise UserError(
                    f"the parts of {part.upload_id} have {total:,} bytes, {limit:,} are allowed",
                    why="Parts that are sent again count too, twice what was promised is room enough.",
                    cure="cancel this upload and begin a new one",
                )
            db.execute(sa.insert(upload_parts).values({n: getattr(part, n) for n in Part.__dataclass_fields__}))

    def parts(self, upload_id: str) -> dict[str, Part]:
        """Id -> part, in order of arrival."""
        query = sa.select(upload_parts).where(upload_parts.c.upload_id == upload_id)
        with self.read() as db:
            ordered = query.order_by(upload_parts.c.created_at, upload_parts.c.id)
            return {row["id"]: _part(row) for row in db.execute(ordered).mappings()}

    def cancel_upload(self, upload_id: str, *, tenant: str, actor: str) -> UploadRow:
        """The upload, cancelled; one that was cancelled before stays so. Raises NotFoundError, UserError when it is completed or expired."""
        with self.write() as db:
            found = _upload(db, upload_id, tenant)
            if found.status == "cancelled":
                return found
            pending(found)
            db.execute(sa.update(uploads).where(uploads.c.id == upload_id).values(status="cancelled"))
            add_audit(db, actor=actor, tenant=tenant, action="upload.cancel", subject=upload_id)
            return _upload(db, upload_id, tenant)

    def is_pending(self, upload_id: str) -> bool:
        """True while parts of it may still be named."""
        where = (uploads.c.id == upload_id, uploads.c.status == "pending", uploads.c.expires_at > now())
        with self.read() as db:
            return db.execute(sa.select(uploads.c.id).where(*where)).first() is not None

    def ended_uploads(self) -> Sequence[str]:
        """Ids of uploads whose parts are waste: cancelled, completed or out of time, and still with parts."""
        over = sa.or_(uploads.c.status != "pending", uploads.c.expires_at <= now())
        query = sa.select(uploads.c.id).where(over, uploads.c.id.in_(sa.select(upload_parts.c.upload_id)))
        with self.read() as db:
            return db.execute(query).scalars().all()

    def forget_parts(self, upload_id: str, remove: Callable[[], None]) -> None:
        """Calls `remove`, then forgets the parts of an upload that has ended, and says `expired` where its time was over."""
        remove()
        mine = sa.update(uploads).where(uploads.c.id == upload_id, uploads.c.status == "pending")
        with self.write() as db:
            db.execute(mine.values(status="expired"))
            db.execute(sa.delete(upload_parts).where(upload_parts.c.upload_id == upload_id))


def pending(upload: UploadRow) -> UploadRow:
    """The upload, when parts may come. Raises UserError."""
    if upload.status == "pending":
        return upload
    raise UserError(
        f"{upload.id} is {upload.status}", why="Parts belong to an upload that is pending.", cure="begin a new upload"
    )


def _upload(db: sa.Connection, upload_id: str, tenant: str) -> UploadRow:
    where = (uploads.c.id == (upload_id if ID.fullmatch(upload_id) else ""), uploads.c.tenant == tenant)
    row = db.execute(sa.select(uploads).where(*where)).mappings().first()
    if row is None:
        raise NotFoundError(f"no upload {upload_id[:60]!r}", cure="begin a new upload")
    return _read(row)


def _read(row: Any) -> UploadRow:
    values: dict[str, Any] = dict(row)
    if values["status"] == "pending" and values["expires_at"] <= now():
        values["status"] = "expired"
    return UploadRow(**values)


def _part(row: Any) -> Part:
    return Part(**row)
