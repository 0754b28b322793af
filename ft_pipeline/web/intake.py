"""How bytes become a file of a tenant: what may come in, under which label, within which limits, and how it gets into the store."""

from __future__ import annotations

import re
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ft_pipeline.errors import StorageError
from ft_pipeline.store.blobs import Blobs
from ft_pipeline.store.platform.files import FileRow, NewFile
from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.web.arrivals import Arrival
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.quotas import require_storage
from ft_pipeline.web.refusals import Refusal, TooLarge
from ft_pipeline.web.sniff import suffix_of_rows

PURPOSES = ("fine-tune",)
LABEL_CHARACTERS = 200
EXPIRY_SECONDS = (3600, 30 * 24 * 3600)
"""As OpenAI's `expires_after`: one hour to thirty days."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What a client says about a file before or beside its bytes."""

    filename: str
    purpose: str
    expires_at: str | None = None


def new_id(kind: str) -> str:
    """`file-` or `upload_` and 24 random hex digits: ids of other tenants are not guessed."""
    return f"{kind}{secrets.token_hex(12)}"


def checked_purpose(purpose: str | None) -> str:
    """The purpose. Raises Refusal with the list."""
    if purpose not in PURPOSES:
        raise Refusal(
            f"purpose {purpose!r}" if purpose else "the field purpose is missing",
            code="invalid_purpose",
            param="purpose",
            why="This platform trains: there are no assistants, batches or images here.",
            cure=f"send purpose={', '.join(PURPOSES)}",
        )
    return purpose


def label_of(name: str | None) -> str:
    """A file name as it may be shown anywhere: its last part, without control and direction characters, at most 200 characters.

    It is a label. No file is ever opened under it: bytes are found by their digest.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name or ""))[-1]
    shown = "".join(" " if c.isspace() else c for c in last if unicodedata.category(c)[0] != "C" or c.isspace())
    shown = re.sub(" +", " ", shown).strip(" .")
    if len(shown) > LABEL_CHARACTERS:
        start, dot, ending = shown.rpartition(".")
        ending = f"{dot}{ending}" if start and len(ending) <= 12 else ""
        shown = shown[: LABEL_CHARACTERS - len(ending)] + ending
    return shown or "file"


def expiry(seconds: int | None, anchor: str | None = "created_at") -> str | None:
    """When a file goes by itself. Raises Refusal for a time that is out of range."""
    least, most = EXPIRY_SECONDS
    if seconds is None:
        return None
    if anchor != "created_at" or not least <= seconds <= most:
        raise Refusal(
            f"expires_after is {seconds} s after {anchor}",
            param="expires_after",
            code="invalid_expiry",
            cure=f"anchor created_at and seconds from {least} to {most}",
        )
    return in_seconds(seconds)


def in_seconds(seconds: int) -> str:
    """A time in the future as the tables keep it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


def too_large(size: int, limits: Limits) -> TooLarge:
    """The refusal of a file beyond `limits.file_bytes`."""
    return TooLarge(
        f"the file has {size:,} bytes or more, {limits.file_bytes:,} are allowed",
        code="file_too_large",
        param="file",
        cure="pack it with gzip or zstandard, or bring it in several files; the operator sets file_bytes of a tenant",
    )


def check_room(limits: Limits, size: int, stored: int) -> None:
    """Raises TooLarge, TooMany when a tenant that has `stored` bytes may not bring `size` more."""
    if limits.file_bytes is not None and size > limits.file_bytes:
        raise too_large(size, limits)
    require_storage(limits, stored_bytes=stored, new_bytes=size)


def take_in(
    platform: Platform, caller: Caller, arrival: Arrival, *, label: Label, upload_id: str | None = None
) -> FileRow | None:
    """The file of bytes that have arrived. First the blob, then the row: a row never names bytes that are not there.

    None when the upload was completed by another request meanwhile. Raises Refusal: no rows, no room.
    """
    suffix_of_rows(arrival.path)
    limits, blobs = platform.records.tenant(caller.tenant).limits, Blobs(platform.store)
    new = NewFile(
        id=new_id("file-"), tenant=caller.tenant, blob_sha256=arrival.sha256, bytes=arrival.size,
        filename=label.filename, purpose=label.purpose, expires_at=label.expires_at,
    )  # fmt: skip
    blobs.put(arrival.path, arrival.sha256)
    try:
        made = platform.records.add_file(
            new,
            actor=caller.actor,
            room=lambda stored: check_room(limits, arrival.size, stored),
            upload_id=upload_id,
        )
    except BaseException:
        platform.records.release_blob(arrival.sha256, lambda: blobs.remove(arrival.sha256))
        raise
    if blobs.size(arrival.sha256) is None:
        # the collector took it between the two steps; from now on the row holds it
        blobs.put(arrival.path, arrival.sha256)
    return made


def missing_bytes(file: FileRow) -> StorageError:
    """The error of a row whose blob somebody deleted."""
    return StorageError(
        f"the bytes of {file.id} are not in the store",
        why=f"blobs/{file.blob_sha256[:2]}/{file.blob_sha256} was deleted by hand.",
        cure="restore it from a backup, or upload the file again",
    )
