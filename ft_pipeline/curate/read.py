"""The raw rows of a block: JSON lines, items of a JSON array, rows of a Parquet file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.curate import blocks
from ft_pipeline.curate.artifact import EXCERPT_CHARACTERS, Reason, Rejection, rejected
from ft_pipeline.curate.blocks import Block, Long, Rows, Seen, damaged_parquet, overlapping
from ft_pipeline.curate.json_rows import RowDecoder
from ft_pipeline.store.fingerprint import canonical_json

BATCH_ROWS = 512
BLANK = b" \t\r\n\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it came, or why it is none."""

    number: int
    """Line (array item, Parquet row) within the block, from 0."""
    key: str
    """sha256 of the row's canonical JSON (of the bytes when it is not JSON): equal for equal rows."""
    value: Mapping[str, Any] | None
    excerpt: str
    rejection: Rejection | None = None


def rows_of_block(block: Block) -> Iterator[RawRow]:
    """Every row of a block in order; blank lines are no rows. Raises DataError for a broken Parquet file."""
    payload = block.payload
    if isinstance(payload, Long):
        yield _too_long(0, payload.start, payload.sha256, num_bytes=payload.num_bytes)
    elif isinstance(payload, Rows):
        for number, value in enumerate(_parquet_rows(block.name, payload)):
            yield _row(number, _plain(value), None)
    else:
        decoder = RowDecoder()
        for number, line in enumerate(payload.split(b"\n") if isinstance(payload, bytes) else payload):
            if len(line) > blocks.MAX_LINE_BYTES:
                yield _too_long(number, line, hashlib.sha256(line).hexdigest(), num_bytes=len(line))
            elif line.strip(BLANK):
                yield _decoded(number, line, decoder)


def raw_rows(files: Mapping[str, Path], seen: Seen) -> Iterator[tuple[str, RawRow]]:
    """Every row of the files with its origin `file:number`, from 1."""
    for block in blocks.blocks("dataset", files, seen, sha256={}):
        for row in rows_of_block(block):
            yield f"{block.name}:{block.first + row.number}", row


def _decoded(number: int, line: bytes, decoder: RowDecoder) -> RawRow:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = rejected(Reason.INVALID_UTF8, f"byte {error.start}", line[error.start : error.start + 8].hex(" "))
        return _bad(number, line, found)
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        return _bad(number, line, rejected(Reason.NOT_JSON, "", f"{error}: {text[:40]}"))
    return _row(number, value, decoder.problem)


def _parquet_rows(name: str, rows: Rows) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(rows.path)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        groups, at = overlapping(sizes, rows.start, rows.stop)
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups):
            start, stop = max(rows.start - at, 0), min(rows.stop - at, len(batch))
            if start < stop:
                yield from batch.slice(start, stop - start).to_pylist()
            at += len(batch)
            if at >= rows.stop:
                return
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(name, error) from None


def _row(number: int, value: Any, problem: Rejection | None) -> RawRow:
    canonical = canonical_json(value)
    excerpt = canonical[:EXCERPT_CHARACTERS].decode()
    key = hashlib.sha256(canonical).hexdigest()
    if problem is None and not isinstance(value, dict):
        problem = rejected(Reason.NOT_AN_OBJECT, "", excerpt)
    return RawRow(number, key, None if problem else value, excerpt, problem)


def _bad(number: int, line: bytes, rejection: Rejection) -> RawRow:
    return RawRow(number, hashlib.sha256(line).hexdigest(), None, _start(line), rejection)


def _too_long(number: int, line: bytes, sha256: str, *, num_bytes: int) -> RawRow:
    told = Rejection(reason=Reason.TOO_LONG_LINE, path="", value=f"{num_bytes:,} bytes")
    return RawRow(number, sha256, None, _start(line), told)


def _start(line: bytes) -> str:
    return line[:EXCERPT_CHARACTERS].decode("utf-8", "backslashreplace")[:EXCERPT_CHARACTERS]


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
