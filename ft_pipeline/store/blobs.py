"""Uploaded bytes in the store, named by their sha256: tenants who bring the same file share one blob."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.errors import UserError
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import Bucket, beside, clear_errors, sync_file, sync_folder
from ft_pipeline.store.paths import BLOBS, blob_path, download_folder, under

SCHEME = "blob://"
"""Of a recipe's `dataset.uri`: `blob://SHA256`, the bytes of an uploaded file."""
PIECE_BYTES = 1 << 20


def is_blob(uri: str) -> bool:
    """True for a URI of uploaded bytes."""
    return uri.startswith(SCHEME)


def digest_of(uri: str) -> str:
    """The sha256 that such a URI names. Raises UserError."""
    digest = uri.removeprefix(SCHEME)
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(f"{uri} names no blob", cure=f"use {SCHEME} and the 64 hex digits of the file's sha256")
    return digest


def local_blob(store_uri: str, sha256: str) -> Path | None:
    """The file of a blob in a store on this machine, None for a bucket and where it is not."""
    path = None if "://" in store_uri else Path(under(store_uri, blob_path(sha256)))
    return path if path and path.is_file() else None


@dataclass(frozen=True)
class Blobs:
    """The blobs of a store."""

    store: Store

    @property
    def bucket(self) -> Bucket:
        """Where they are."""
        return self.store.bucket

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, None when it is not there."""
        place = self.bucket.path(blob_path(sha256))
        try:
            with clear_errors(f"looking at {place}"):
                return int(self.bucket.filesystem.info(place, refresh=True)["size"])
        except FileNotFoundError:
            return None

    def put(self, source: Path, sha256: str) -> None:
        """Makes the bytes of a local file, which stays, a blob: by a hard link where that is possible. Whole or not at all."""
        if self.size(sha256) == source.stat().st_size:
            return
        put_at(self.bucket, source, blob_path(sha256))

    def head(self, sha256: str, num_bytes: int) -> bytes | None:
        """The first bytes of a blob, None when it is not there."""
        return next(self.pieces(sha256, stop=num_bytes), b"") if self.size(sha256) is not None else None

    def pieces(self, sha256: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of a blob from `start` to `stop`, 1 MiB at a time. Raises FileNotFoundError."""
        yield from pieces_at(self.bucket, blob_path(sha256), start=start, stop=stop)

    @contextmanager
    def local(self, sha256: str) -> Iterator[Path]:
        """A local file with the bytes: the blob itself, or a copy that is gone afterwards. Raises FileNotFoundError."""
        if self.bucket.is_local:
            yield Path(self.bucket.path(blob_path(sha256)))
            return
        target = beside(download_folder(self.store.work) / sha256)
        try:
            self.bucket.download(blob_path(sha256), target)
            yield target
        finally:
            target.unlink(missing_ok=True)

    def remove(self, sha256: str) -> None:
        """Deletes a blob, if it is there."""
        self.bucket.remove(blob_path(sha256))

    def all(self) -> Iterator[str]:
        """The digest of every blob."""
        for folder in self.bucket.list(BLOBS):
            yield from (name for name in self.bucket.list(f"{BLOBS}/{folder}") if len(name) == 64)


def put_at(bucket: Bucket, source: Path, path: str) -> None:
    """Puts a copy of a local file at a relative path, whole or not at all; on a disk by a hard link where that is possible."""
    if bucket.is_local:
        _place(source, Path(bucket.path(path)))
    else:
        bucket.upload(source, path)


def pieces_at(bucket: Bucket, path: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `start` to `stop`, 1 MiB at a time. Raises FileNotFoundError."""
    place = bucket.path(path)
    with clear_errors(f"reading {place}"), bucket.filesystem.open(place, "rb", cache_type="readahead") as file:
        file.seek(start)
        left = None if stop is None else stop - start
        while left is None or left > 0:
            piece = file.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
            if not piece:
                return
            left = None if left is None else left - len(piece)
            yield piece


def _place(source: Path, target: Path) -> None:
    """Links, or copies when the two are on different disks; durable before it returns."""
    with clear_errors(f"writing {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = beside(target)
        try:
            try:
                draft.hardlink_to(source)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(source, draft)
            sync_file(draft)
            draft.replace(target)
            sync_folder(target.parent)
        finally:
            draft.unlink(missing_ok=True)
