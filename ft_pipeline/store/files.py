"""Bytes on a local disk or in S3, through fsspec: atomic writes, put-if-absent, verified reads, clear errors."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ft_pipeline.errors import FtError, StorageError
from ft_pipeline.store.fingerprint import CHUNK_BYTES, sha256_file
from ft_pipeline.store.paths import PROBE, under

FULL = ("No space left on device", "database or disk is full", "disk I/O error")
"""What a full disk says where no errno comes through: other processes, SQLite."""
FRESH_SECONDS = 2
"""A file changed less than this before it was hashed may change again within one tick of the file system's clock."""


@contextmanager
def clear_errors(action: str) -> Iterator[None]:
    """Turns what a disk or bucket says into a StorageError with the cure: full disk, no permission, no bucket, no answer."""
    try:
        yield
    except FtError:
        raise
    except Exception as error:
        told = storage_error(error, action)
        if told is None:
            raise
        raise told from None


def write_atomic(path: Path, data: bytes) -> None:
    """A local file that is either the old or the new bytes, never a mixture: temp, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = beside(path)
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """An unused name in the same folder, for a file or folder that is renamed when it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync_file(path: Path) -> None:
    """Makes the bytes of a file survive a power cut."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file; waits for other processes and threads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_hashed: dict[tuple[str | int, ...], str] = {}


def known_sha256(path: Path) -> str:
    """Digest of a local file, hashed once in this process while its size, inode and both times stay.

    ctime is among them because a copy or `touch` sets mtime back, but nothing sets ctime back.
    """
    facts = path.stat()
    key = (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if key in _hashed:
        return _hashed[key]
    found = sha256_file(path)
    if time.time() - max(facts.st_mtime, facts.st_ctime) > FRESH_SECONDS:
        _hashed[key] = found
    return found


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

    @cached_property
    def creates_exclusively(self) -> bool:
        """True when the server honours If-None-Match, probed with one small object that stays in the bucket.

        rclone's S3 server, for one, ignores it (measured: 30 writers, 30 winners).
        """
        with clear_errors(f"probing {self.root}"):
            try:
                self.filesystem.pipe_file(self.path(PROBE), b"", mode="create")
                self.filesystem.pipe_file(self.path(PROBE), b"", mode="create")
            except FileExistsError:
                return True
            except (NotImplementedError, OSError) as error:
                if isinstance(error, PermissionError | FileNotFoundError) or "NotImplemented" not in repr(error):
                    raise
        return False

    def path(self, *parts: str) -> str:
        """Full path or URI of a relative one."""
        return under(self.root, *parts)

    def read(self, path: str) -> bytes | None:
        """The bytes at a relative path, None when there are none."""
        try:
            with clear_errors(f"reading {self.path(path)}"):
                return self.filesystem.cat_file(self.path(path))
        except FileNotFoundError:
            return None

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Path -> bytes of those of the paths that exist, sorted as fsspec sorts them; from S3 many at a time."""
        paths = sorted(paths)
        full = [self.path(path) for path in paths]
        with clear_errors(f"reading {len(paths)} files below {self.root}"):
            answers = self.filesystem.cat(full, on_error="return") if full else {}
            found = dict(zip(paths, answers.values(), strict=True))
            for answer in found.values():
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer
        return {path: content for path, content in found.items() if isinstance(content, bytes)}

    def list(self, path: str) -> list[str]:
        """Names directly below a relative path, sorted; empty when there is none."""
        try:
            with clear_errors(f"listing {self.path(path)}"):
                found = self.filesystem.ls(self.path(path), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def size_and_sha256(self, path: str, tell: Callable[[int], None]) -> tuple[int, str] | None:
        """What a file really is, read through once; None when it is missing. `tell` hears of every piece read, in bytes."""
        digest, size = hashlib.sha256(), 0
        try:
            with (
                clear_errors(f"reading {self.path(path)}"),
                self.filesystem.open(self.path(path), "rb", cache_type="readahead") as file,
            ):
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    tell(len(chunk))
        except (FileNotFoundError, IsADirectoryError):
            return None
        return size, digest.hexdigest()

    def upload(self, source: Path, path: str) -> None:
        """Copies a local file to a relative path."""
        with clear_errors(f"uploading to {self.path(path)}"):
            self.filesystem.put_file(str(source), self.path(path))

    def download(self, path: str, target: Path) -> None:
        """Copies a relative path to a local file. Raises FileNotFoundError."""
        with clear_errors(f"downloading {self.path(path)}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.filesystem.get_file(self.path(path), str(target))

    def write(self, path: str, content: bytes) -> None:
        """Puts bytes at a relative path, whole or not at all, over what was there."""
        with clear_errors(f"writing {self.path(path)}"):
            if self.is_local:
                write_atomic(Path(self.path(path)), content)
            else:
                self.filesystem.pipe_file(self.path(path), content)

    def remove(self, path: str) -> None:
        """Deletes what is at or below a relative path, if anything is."""
        try:
            with clear_errors(f"deleting {self.path(path)}"):
                self.filesystem.rm(self.path(path), recursive=True)
        except FileNotFoundError:
            return

    def create(self, path: str, content: bytes) -> None:
        """Puts bytes where nothing is. Where something is, that stays: read it to see who won.

        On a server without conditional puts the last writer wins; both writers must bring whole, equal things.
        """
        mode = "create" if self.creates_exclusively else "overwrite"
        try:
            with clear_errors(f"writing {self.path(path)}"):
                self.filesystem.pipe_file(self.path(path), content, mode=mode)
        except FileExistsError:
            self.filesystem.invalidate_cache()


def storage_error(error: Exception, action: str) -> StorageError | None:
    """The StorageError of an error of a disk or bucket, None for every other error."""
    said = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(s in said for s in FULL):
        return StorageError(
            f"no space left while {action}",
            why="The draft was discarded; no artifact was published and everything stored before is whole.",
            cure="free space or point FT_HOME / FT_STORE at a larger disk, then run the same command again",
        )
    if isinstance(error, NotADirectoryError):
        return StorageError(f"a folder is needed while {action}: {said}", cure="move the file that is in the way")
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return StorageError(
            f"no permission while {action}: {said}", cure="check the owner of FT_HOME, or the S3 credentials"
        )
    if isinstance(error, FileNotFoundError) and "bucket does not exist" in said:
        return StorageError(f"no such bucket while {action}", cure="create the bucket, or mend FT_STORE")
    if type(error).__module__.startswith(("botocore.", "aiobotocore.", "aiohttp.")):
        return StorageError(
            f"no answer from S3 while {action}: {said}",
            cure="check FT_S3_ENDPOINT, the network and the AWS_* credentials; `ft-pipeline doctor` tries them",
        )
    return None
