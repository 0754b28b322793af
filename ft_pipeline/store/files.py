"""Bytes on a local disk or in S3, through fsspec: atomic writes, put-if-absent, verified reads, clear errors."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ft_pipeline.errors import StorageError
from ft_pipeline.store.paths import under


@contextmanager
def clear_errors(action: str) -> Iterator[None]:
    """Turns what a disk or bucket says into a StorageError with the cure: full disk, no permission, no bucket."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left while {action}",
                why="The draft was discarded; no artifact was published and everything stored before is whole.",
                cure="free space or point FT_HOME / FT_STORE at a larger disk, then run the same command again",
            ) from None
        if isinstance(error, PermissionError):
            raise StorageError(
                f"no permission while {action}: {error}", cure="check the owner of FT_HOME, or the S3 credentials"
            ) from None
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """A local file that is either the old or the new bytes, never a mixture: temp, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Bucket:
    """A root URI: a local folder or `s3://bucket/prefix`."""

    root: str
    s3_endpoint: str | None = None

    @property
    def is_local(self) -> bool:
        """True when files can be opened in place."""
        return "://" not in self.root

    @cached_property
    def filesystem(self) -> Any:
        """The fsspec filesystem of the root."""
        import fsspec

        if self.is_local:
            return fsspec.filesystem("file")
        options = {"endpoint_url": self.s3_endpoint} if self.s3_endpoint else {}
        return fsspec.filesystem(self.root.split("://")[0], client_kwargs=options)

    def path(self, *parts: str) -> str:
        """Full path or URI of a relative one."""
        return under(self.root, *parts)

    def read(self, path: str) -> bytes | None:
        """The bytes at a relative path, None when there are none."""
        try:
            with clear_errors(f"reading {path}"):
                return self.filesystem.cat_file(self.path(path))
        except FileNotFoundError:
            return None

    def list(self, path: str) -> list[str]:
        """Names directly below a relative path, sorted; empty when there is none."""
        try:
            found = self.filesystem.ls(self.path(path), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)
