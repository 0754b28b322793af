"""Rows that a tenant uploaded, as a recipe names them: `blob://SHA256`. What the file is, its bytes say and not its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ft_pipeline.acquire.bucket import bucket_files
from ft_pipeline.acquire.places import Desk, File, LocalFile
from ft_pipeline.errors import DataError, IntegrityError, NotFoundError
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.blobs import Blobs, digest_of
from ft_pipeline.store.paths import blob_path

HEAD_BYTES = 4096
BLANK = b" \t\r\n\xef\xbb\xbf"


def uploaded_file(uri: str, store: Store, *, endpoint: str | None) -> File:
    """The blob as a file with a name that says how to read it. Raises UserError, NotFoundError, DataError (no rows)."""
    digest = digest_of(uri)
    head = Blobs(store).head(digest, HEAD_BYTES)
    if head is None:
        raise NotFoundError(
            f"no uploaded file {uri} in this store",
            why="It was deleted and nothing used it any more, or it is in another store.",
            cure="upload it again: the same bytes have the same address",
        )
    suffix = row_suffix(head)
    if suffix is None:
        raise DataError(f"{uri} is empty (0 bytes)", cure="upload a file that holds rows")
    place = store.bucket.path(blob_path(digest))
    name = f"rows{suffix}"
    if store.bucket.is_local:
        return LocalFile(name=name, path=Path(place))
    return replace(bucket_files(place, endpoint)[0], name=name)


def verify(uri: str, file: File, desk: Desk) -> None:
    """Raises IntegrityError when the bytes that were copied are not the ones that the URI names."""
    if desk.digests[file.name] != digest_of(uri):
        raise IntegrityError(
            f"{uri} holds bytes with sha256 {desk.digests[file.name]}",
            why="The blob was damaged in the store; nobody may train on it.",
            cure="upload the file again after the damaged blob is deleted",
        )


def row_suffix(head: bytes) -> str | None:
    """How a file of rows that begins so is to be read, as the ending of a name; None for an empty one.

    What is packed may hold JSON lines or an array: `.json` leaves that to curate/blocks.py, which looks inside.
    """
    if head[:4] == b"PAR1":
        return ".parquet"
    if head[:2] == b"\x1f\x8b":
        return ".json.gz"
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return ".json.zst"
    if not head:
        return None
    return ".json" if head.lstrip(BLANK)[:1] == b"[" else ".jsonl"
