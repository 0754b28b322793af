"""Bytes of a plain, gzip or zstandard file in pieces, and lines out of pieces without ever holding an endless one."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError

PIECE_BYTES = 1 << 20
BITE_BYTES = 1 << 12
KEPT_BYTES = 1 << 10
"""Of a line that is too long."""


@dataclass
class Line:
    """A line without its end."""

    start: bytes
    """The line; only its first bytes when it was cut."""
    num_bytes: int
    cut: bool = False
    hasher: Any = field(default_factory=hashlib.sha256)

    def sha256(self) -> str:
        """Of the whole line; only for one that was cut."""
        return self.hasher.hexdigest()


def pieces(path: Path, name: str, seen: Callable[[int], None]) -> Iterator[bytes]:
    """Unpacked bytes of a file. `seen` is told of stored bytes. Raises DataError when an archive is damaged or cut off."""
    lower = name.lower()
    stored = _stored(path, seen)
    if lower.endswith(".gz"):
        return _gzip(stored, name)
    return _zstandard(stored, name) if lower.endswith(".zst") else stored


def bounded_lines(source: Iterator[bytes], limit: int) -> Iterator[Line]:
    """Lines of a stream of bytes. One longer than the limit comes cut, with its length and hash: memory stays bounded."""
    waiting: list[bytes] = []
    size = 0
    long: Line | None = None
    for piece in source:
        *ended, rest = piece.split(b"\n")
        for part in ended:
            yield _ended(long, [*waiting, part], limit)
            waiting, size, long = [], 0, None
        waiting.append(rest)
        size += len(rest)
        if long or size > limit:
            long = _longer(long, waiting)
            waiting = []
    if long or size:
        yield _ended(long, waiting, limit)


def _ended(long: Line | None, parts: list[bytes], limit: int) -> Line:
    if long is not None or sum(map(len, parts)) > limit:
        return _longer(long, parts)
    start = b"".join(parts)
    return Line(start, len(start))


def _longer(long: Line | None, parts: list[bytes]) -> Line:
    line = long or Line(b"".join(parts)[:KEPT_BYTES], 0, cut=True)
    for part in parts:
        line.hasher.update(part)
        line.num_bytes += len(part)
    return line


def _stored(path: Path, seen: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            seen(len(piece))
            yield piece


def _gzip(stored: Iterator[bytes], name: str) -> Iterator[bytes]:
    """All members of a gzip file; at most one piece is unpacked at a time."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        for waiting in stored:
            while waiting:
                if unpacker.eof:
                    unpacker = zlib.decompressobj(wbits=31)
                if made := unpacker.decompress(waiting, PIECE_BYTES):
                    yield made
                waiting = unpacker.unconsumed_tail or unpacker.unused_data
        if made := unpacker.flush():
            yield made
    except zlib.error as error:
        raise _damaged(name, str(error)) from None
    if not unpacker.eof:
        raise _damaged(name, "it ends in the middle")


def _zstandard(stored: Iterator[bytes], name: str) -> Iterator[bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor().decompressobj()
    try:
        for piece in stored:
            # small bites: 4 stored bytes can stand for 128 KiB
            for at in range(0, len(piece), BITE_BYTES):
                waiting = piece[at : at + BITE_BYTES]
                while waiting:
                    if unpacker.eof:
                        unpacker = zstandard.ZstdDecompressor().decompressobj()
                    if made := unpacker.decompress(waiting):
                        yield made
                    waiting = unpacker.unused_data if unpacker.eof else b""
    except zstandard.ZstdError as error:
        raise _damaged(name, str(error)) from None
    if not unpacker.eof:
        raise _damaged(name, "it ends in the middle")


def _damaged(name: str, why: str) -> DataError:
    return DataError(
        f"{name} cannot be unpacked: {why}", why="A part of its rows would be silently lost.", cure="download it again"
    )
