"""Raw files become raw rows, in bounded memory: JSON lines, a JSON array, Parquet; plain, gzip or zstandard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.curate.artifact import EXCERPT_CHARACTERS, Reason, Rejection, rejected
from ft_pipeline.curate.json_rows import RowDecoder, array_items
from ft_pipeline.curate.unpack import bounded_lines, pieces
from ft_pipeline.errors import DataError
from ft_pipeline.store.fingerprint import canonical_json

MAX_LINE_BYTES = 64 << 20
BATCH_ROWS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRow:
    """A row as it came, or why it is none."""

    origin: str
    """`file:line`, from 1; in a JSON array or Parquet file the number of the row."""
    key: str
    """sha256 of the row's canonical JSON (of the bytes when it is not JSON): equal for equal rows."""
    value: Mapping[str, Any] | None
    excerpt: str
    rejection: Rejection | None = None


def raw_rows(files: Mapping[str, Path], seen: Callable[[int], None]) -> Iterator[RawRow]:
    """Every row of the files in order of name; blank lines are no rows. `seen` is told of stored bytes as they are read.

    Raises DataError for a file that is damaged as a whole (cut-off archive, broken Parquet, broken array).
    """
    for name, path in sorted(files.items()):
        if name.lower().endswith(".parquet"):
            yield from _parquet_rows(name, path)
            seen(path.stat().st_size)
        elif _is_array(name, path):
            yield from _array_rows(name, path, seen)
        else:
            yield from _line_rows(name, path, seen)


def _line_rows(name: str, path: Path, seen: Callable[[int], None]) -> Iterator[RawRow]:
    decoder = RowDecoder()
    for number, line in enumerate(bounded_lines(pieces(path, name, seen), MAX_LINE_BYTES), 1):
        origin = f"{name}:{number}"
        if line.cut:
            value = f"{line.num_bytes:,} bytes"
            too_long = Rejection(reason=Reason.TOO_LONG_LINE, path="", value=value)
            yield _bad(origin, line.sha256(), line.start, rejection=too_long)
        elif line.start.strip(b" \t\r\n\xef\xbb\xbf"):
            yield _decoded(origin, line.start, decoder)


def _decoded(origin: str, line: bytes, decoder: RowDecoder) -> RawRow:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = rejected(Reason.INVALID_UTF8, f"byte {error.start}", line[error.start : error.start + 8].hex(" "))
        return _bad(origin, hashlib.sha256(line).hexdigest(), line, rejection=found)
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        found = rejected(Reason.NOT_JSON, "", f"{error}: {text[:40]}")
        return _bad(origin, hashlib.sha256(line).hexdigest(), line, rejection=found)
    return _row(origin, value, decoder.problem)


def _array_rows(name: str, path: Path, seen: Callable[[int], None]) -> Iterator[RawRow]:
    decoder = RowDecoder()
    for number, value in enumerate(array_items(pieces(path, name, seen), decoder, name), 1):
        yield _row(f"{name}:{number}", value, decoder.problem)


def _parquet_rows(name: str, path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
            for value in batch.to_pylist():
                number += 1
                yield _row(f"{name}:{number}", _plain(value), None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a whole Parquet file: {error}", cure="write or download it again") from None


def _row(origin: str, value: Any, problem: Rejection | None) -> RawRow:
    canonical = canonical_json(value)
    excerpt = canonical[:EXCERPT_CHARACTERS].decode()
    key = hashlib.sha256(canonical).hexdigest()
    if problem is None and not isinstance(value, dict):
        problem = rejected(Reason.NOT_AN_OBJECT, "", excerpt)
    if problem is not None:
        return RawRow(origin=origin, key=key, value=None, excerpt=excerpt, rejection=problem)
    return RawRow(origin=origin, key=key, value=value, excerpt=excerpt)


def _bad(origin: str, key: str, line: bytes, *, rejection: Rejection) -> RawRow:
    excerpt = line[:EXCERPT_CHARACTERS].decode("utf-8", "backslashreplace")[:EXCERPT_CHARACTERS]
    return RawRow(origin=origin, key=key, value=None, excerpt=excerpt, rejection=rejection)


def _plain(value: Any) -> Any:
    """A Parquet value as JSON has it: dates and decimals as text, bytes as hex, NaN as null.

    Nulls in objects are left out: Parquet writes every key of every row's struct into all of them.
    """
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if v is not None and v == v}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _is_array(name: str, path: Path) -> bool:
    """True for a `.json` file that starts with a bracket; JSON lines may carry that ending too."""
    if not name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".json"):
        return False
    for piece in pieces(path, name, lambda _bytes: None):
        if start := piece.lstrip(b" \t\r\n\xef\xbb\xbf"):
            return start.startswith(b"[")
    return False
