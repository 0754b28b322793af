"""Downloads that survive a cut line or a killed process: a partial file per address, resumed where it ended.

huggingface_hub 2.x starts a fresh temporary file in every process (its pull request 4228), so the bytes of the Hub come through
here as well; the library still resolves revisions, names and credentials.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError, StorageError
from ft_pipeline.store.files import clear_errors, write_atomic
from ft_pipeline.store.fingerprint import sha256_bytes, sha256_file

ATTEMPTS = 5
PAUSE_SECONDS = 0.5


class CutShort(Exception):
    """The other side stopped talking: worth another attempt from where it stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file that is somewhere else."""

    name: str
    """Relative name in the artifact."""
    uri: str
    """Where it is: names the partial file."""
    size: int | None
    version: str | None
    """ETag or date: the same version means the same bytes. None: nothing may be assumed between two attempts."""
    read: Callable[[int], Iterator[tuple[int, bytes]]]
    """From an offset, pieces with their position; a position of 0 says that the server began anew. Raises CutShort."""
    sha256: str | None = None
    """What the source says the bytes hash to (the Hub does, for large files)."""


def known_sha256(remote: RemoteFile, folder: Path) -> str | None:
    """The digest of an earlier whole download of this version, None when it has to be fetched to be known."""
    record = _record(remote, folder)
    return record.get("sha256") if remote.version and record.get("version") == remote.version else None


def download(remote: RemoteFile, folder: Path, seen: Callable[[int], None]) -> tuple[Path, str]:
    """The whole file below a folder, and its sha256; `seen` is told of every new byte count. A known version returns at once.

    Raises StorageError when the line stays dead (the partial file is kept), DataError when the bytes are not the promised ones.
    """
    whole = folder / f"{_key(remote)}.whole"
    with clear_errors(f"downloading {remote.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f"{_key(remote)}.lock"):
            if whole.is_file() and (known := known_sha256(remote, folder)):
                seen(whole.stat().st_size)
                return whole, known
            partial = _download(remote, folder, seen)
            digest = sha256_file(partial)
            if remote.sha256 and digest != remote.sha256:
                partial.unlink()
                raise DataError(
                    f"{remote.uri}: the bytes hash to {digest[:12]}, the source says {remote.sha256[:12]}",
                    cure="run the same command again; if it stays, the source is damaged",
                )
            partial.replace(whole)
            _write_record(remote, folder, sha256=digest)
    return whole, digest


def forget(remote: RemoteFile, folder: Path) -> None:
    """Removes the bytes once they are in the store; the record stays, so that an unchanged file is not fetched again."""
    (folder / f"{_key(remote)}.whole").unlink(missing_ok=True)


def _download(remote: RemoteFile, folder: Path, seen: Callable[[int], None]) -> Path:
    partial = folder / f"{_key(remote)}.partial"
    if not remote.version or _record(remote, folder).get("version") != remote.version:
        partial.unlink(missing_ok=True)
        _write_record(remote, folder)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _append(remote, partial, seen)
        except CutShort as error:
            if attempt == ATTEMPTS:
                raise StorageError(
                    f"{remote.uri}: {error}",
                    why=f"Gave up after {ATTEMPTS} attempts with {_size(partial):,} of {remote.size or 0:,} bytes here.",
                    cure="run the same command again: it goes on where this one stopped",
                ) from None
            time.sleep(PAUSE_SECONDS * attempt)
        else:
            break
    return partial


def _append(remote: RemoteFile, partial: Path, seen: Callable[[int], None]) -> None:
    have = _size(partial)
    seen(have)
    with partial.open("ab") as file:
        if remote.size is None or have != remote.size:
            for position, piece in remote.read(have):
                if position != have:
                    seen(position - have)
                    file.truncate(position)
                file.write(piece)
                have = position + len(piece)
                seen(len(piece))
    if remote.size is not None and have != remote.size:
        seen(-have)
        if have > remote.size:
            partial.unlink()
        raise CutShort(f"{have:,} of {remote.size:,} bytes came")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _key(remote: RemoteFile) -> str:
    return sha256_bytes(remote.uri.encode())[:32]


def _record(remote: RemoteFile, folder: Path) -> dict[str, Any]:
    path = folder / f"{_key(remote)}.json"
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


def _write_record(remote: RemoteFile, folder: Path, **facts: Any) -> None:
    record = {"uri": remote.uri, "version": remote.version, "size": remote.size, **facts}
    write_atomic(folder / f"{_key(remote)}.json", json.dumps(record).encode())


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two processes that append to one partial file would mix their bytes."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
