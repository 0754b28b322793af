"""Bodies on their way in: written to disk and hashed as they come, refused at the byte that is too much, gone when their process dies."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ft_pipeline.store.files import clear_errors
from ft_pipeline.store.paths import arrivals_folder

Check = Callable[[int], None]
"""Given the bytes so far; raises what refuses more."""


@dataclass
class Arrival:
    """A file that is being written. Its lock lives as long as this process."""

    path: Path
    file: BinaryIO
    check: Check
    size: int = 0
    _sha256: Any = field(default_factory=hashlib.sha256)
    _md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    def write(self, data: bytes) -> None:
        """Takes bytes. Raises what `check` raises, StorageError when the disk is full."""
        self.size += len(data)
        self.check(self.size)
        self._sha256.update(data)
        self._md5.update(data)
        with clear_errors("writing an upload"):
            self.file.write(data)

    def finish(self) -> None:
        """Everything is on its way to the disk; the digests hold."""
        with clear_errors("writing an upload"):
            self.file.flush()

    @property
    def sha256(self) -> str:
        """Of what came so far."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """Of what came so far; OpenAI's clients may send one along."""
        return self._md5.hexdigest()


@contextmanager
def arriving(work: Path, check: Check) -> Iterator[Arrival]:
    """A place for a body; deleted when the block ends, whatever happened."""
    path, file = _locked(arrivals_folder(work))
    try:
        yield Arrival(path, file, check)
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk may refuse what is still in the buffer
            file.close()


def _locked(folder: Path) -> tuple[Path, BinaryIO]:
    """A new file under a lock. A sweep may take one that has no lock yet: then another is made."""
    with clear_errors("writing an upload"):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / secrets.token_hex(12)
            file = path.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                return path, file
            file.close()


def sweep(work: Path) -> int:
    """Deletes what processes that died were writing, and says how many: a living one holds the lock of its file."""
    folder, gone = arrivals_folder(work), 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            gone += 1
    return gone
