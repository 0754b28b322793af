"""Raw files are cut into blocks: what one process examines at a time, named by content, so that known blocks are not read again.

Lines are cut behind the line that reaches 4 MiB, so that rows appended to a file leave its earlier blocks as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.curate.json_rows import RowDecoder, array_items
from ft_pipeline.curate.unpack import KEPT_BYTES, pieces
from ft_pipeline.errors import DataError

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 64 << 20
PARQUET_ROWS = 8192
Seen = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Long:
    """A line above 64 MiB: only its start was kept."""

    start: bytes
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Some rows of a Parquet file."""

    path: Path
    file_sha256: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows that lie side by side in one file."""

    source: str
    """Name of the source: `dataset`, or a name of `mix`."""
    name: str
    first: int
    """Number of the first line, array item or Parquet row, from 1."""
    payload: bytes | tuple[bytes, ...] | Long | Rows
    """Whole lines; items of a JSON array; a line that is too long; rows of a Parquet file."""

    @property
    def digest(self) -> str:
        """sha256 of what the rows are, wherever they lie."""
        found = self.payload
        if isinstance(found, Long):
            return hashlib.sha256(f"long/{found.sha256}/{found.num_bytes}".encode()).hexdigest()
        if isinstance(found, Rows):
            return hashlib.sha256(f"parquet/{found.file_sha256}/{found.start}/{found.stop}".encode()).hexdigest()
        digest = hashlib.sha256(b"lines/" if isinstance(found, bytes) else b"items/")
        for part in (found,) if isinstance(found, bytes) else found:
            digest.update(part if isinstance(found, bytes) else len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def blocks(source: str, files: Mapping[str, Path], seen: Seen, *, sha256: Mapping[str, str]) -> Iterator[Block]:
    """The blocks of the files in order of name. `seen` is told of stored bytes as they are read; `sha256`: name -> digest of a file.

    Raises DataError for a file that is damaged as a whole (cut-off archive, broken Parquet, broken array).
    """
    for name, path in sorted(files.items()):
        if name.lower().endswith(".parquet"):
            found = _parquet(path, name, sha256.get(name, ""))
        elif _is_array(name, path):
            found = _array(path, name, seen)
        else:
            found = _lines(pieces(path, name, seen))
        for first, payload in found:
            yield Block(source=source, name=name, first=first, payload=payload)
        if name.lower().endswith(".parquet"):
            seen(path.stat().st_size)


def _lines(source: Iterator[bytes]) -> Iterator[tuple[int, bytes | Long]]:
    """Whole lines of about 4 MiB with the number of their first; a line that never ends is passed over and told."""
    first, text = 1, bytearray()
    for piece in source:
        text += piece
        # where the bytes say, not where the pieces end: the same file gives the same blocks
        while (end := text.find(b"\n", BLOCK_BYTES - 1) + 1) > 0:
            yield first, bytes(text[:end])
            first += text.count(b"\n", 0, end)
            del text[:end]
        if len(text) > BLOCK_BYTES + MAX_LINE_BYTES:
            before = text.rfind(b"\n") + 1
            if before:
                yield first, bytes(text[:before])
                first += text.count(b"\n")
            long, rest = _to_its_end(text[before:], source)
            yield first, long
            first, text = first + 1, bytearray(rest)
    if text:
        yield first, bytes(text)


def _to_its_end(start: bytearray, source: Iterator[bytes]) -> tuple[Long, bytes]:
    """The line that starts so, read to its end and not kept, and what stands behind it."""
    digest, size, rest = hashlib.sha256(start), len(start), b""
    for piece in source:
        ended, found, rest = piece.partition(b"\n")
        digest.update(ended)
        size += len(ended)
        if found:
            break
    return Long(start=bytes(start[:KEPT_BYTES]), num_bytes=size, sha256=digest.hexdigest()), rest


def _array(path: Path, name: str, seen: Seen) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    decoder = RowDecoder()
    first, items, size = 1, [], 0
    for text in array_items(pieces(path, name, seen), decoder, name):
        items.append(text.encode())
        size += len(items[-1])
        if size >= BLOCK_BYTES:
            yield first, tuple(items)
            first, items, size = first + len(items), [], 0
    if items:
        yield first, tuple(items)


def _parquet(path: Path, name: str, sha256: str) -> Iterator[tuple[int, Rows]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        total = pq.ParquetFile(path).metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(name, error) from None
    for start in range(0, total, PARQUET_ROWS):
        stop = min(start + PARQUET_ROWS, total)
        yield start + 1, Rows(path=path, file_sha256=sha256, start=start, stop=stop)


def damaged_parquet(name: str, error: Exception) -> DataError:
    """The error of a Parquet file that cannot be read."""
    return DataError(f"{name} is not a whole Parquet file: {error}", cure="write or download it again")


def overlapping(groups: Sequence[int], start: int, stop: int) -> tuple[list[int], int]:
    """Which row groups (by their sizes) hold the rows, and the number of the first row of the first of them."""
    found, at, before = [], 0, 0
    for index, size in enumerate(groups):
        if at < stop and at + size > start:
            before = before if found else at
            found.append(index)
        at += size
    return found, before


def _is_array(name: str, path: Path) -> bool:
    """True for a `.json` file that starts with a bracket; JSON lines may carry that ending too."""
    if not name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".json"):
        return False
    for piece in pieces(path, name, lambda _bytes: None):
        if start := piece.lstrip(b" \t\r\n\xef\xbb\xbf"):
            return start.startswith(b"[")
    return False
