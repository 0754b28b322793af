"""Encoded rows on disk between tokenising and packing: one Arrow file a block, read by memory map; what is there is not made again.

A block has at most 4,096 rows or 8 MiB of text. Files are whole or absent, and the folder belongs to one fingerprint (rows, tokenizer,
template, section, code), so a block that is there is right.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.artifact import LEDGER_COLUMNS
from ft_pipeline.encode.columns import edges
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json

if TYPE_CHECKING:
    import numpy as np

BLOCK_ROWS = 4096
BLOCK_BYTES = 8 << 20
READ_ROWS = 256
EXCERPT_CHARACTERS = 160
FACTS = b"facts"


@dataclass
class Draft:
    """A block being made: rows one behind the other, and what became of the others."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    lengths: list[int] = field(default_factory=list)
    edges: array[int] = field(default_factory=lambda: array("i"))
    """start, end, start, end, ... of trained tokens, within their row."""
    num_edges: list[int] = field(default_factory=list)
    row_ids: list[str] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """rows_in, rows, chat, whole (chat rows that were not cut), ended (of those: every turn trains its stop token)."""
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, row_id: str, piece: int, content: tuple[Sequence[int], Sequence[tuple[int, int]]]) -> None:
        """A row, or a piece of one: its ids and the spans of its trained tokens."""
        ids, spans = content
        self.ids.extend(ids)
        self.lengths.append(len(ids))
        for span in spans:
            self.edges.extend(span)
        self.num_edges.append(2 * len(spans))
        self.row_ids.append(row_id)
        self.pieces.append(piece)

    def note(self, row: Mapping[str, Any], action: str, why: tuple[str, Mapping[str, Any]]) -> None:
        """A ledger entry: `dropped` or `changed`, with reason and evidence."""
        reason, evidence = why
        self.reasons[reason] += 1
        self.counts[action] += 1
        self.ledger.append(
            {
                "row_id": row["row_id"],
                "origin": row["origin"],
                "action": action,
                "stage": "encode",
                "reason": reason,
                "evidence": canonical_json(evidence).decode(),
                "excerpt": row["content"][:EXCERPT_CHARACTERS],
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A finished block, memory-mapped."""

    ids: np.ndarray
    """[tokens] int32."""
    starts: np.ndarray
    """[rows + 1] int64: where each row begins in `ids`."""
    edges: np.ndarray
    """int32: start, end, ... of trained tokens, within their row."""
    edge_starts: np.ndarray
    """[rows + 1] int64: where each row begins in `edges`."""
    row_ids: Any
    """Arrow strings."""
    pieces: np.ndarray
    """[rows] int32: 0 but for rows that were split."""
    facts: Mapping[str, Any]
    """counts, reasons."""


def cut(path: Path) -> Iterator[Any]:
    """The rows of a curated split as Arrow tables of one block each: row_id, shape, content, origin."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    waiting: list[Any] = []
    rows = size = 0
    with pq.ParquetFile(path, memory_map=True) as file:
        for batch in file.iter_batches(_rows_at_a_time(file), columns=["row_id", "shape", "content", "origin"]):
            waiting.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
            if rows >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield pa.Table.from_batches(waiting)
                waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _rows_at_a_time(file: Any) -> int:
    """As many rows of mean size as a block holds, at most 256: long documents must not fill the memory before a block is full."""
    groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    size, rows = sum(group.total_byte_size for group in groups), sum(group.num_rows for group in groups)
    return max(1, min(READ_ROWS, BLOCK_BYTES * rows // size)) if size else READ_ROWS


def write_block(path: Path, draft: Draft) -> None:
    """Writes the ledger, then the rows: a block is finished when its rows are there."""
    import numpy as np
    import pyarrow as pa

    if draft.ledger:
        entries = [pa.array([e[name] for e in draft.ledger], pa.string()) for name in LEDGER_COLUMNS]
        write_atomic(_ledger_path(path), _ipc(pa.table(entries, names=list(LEDGER_COLUMNS))))
    columns = {
        "ids": _lists(np.frombuffer(draft.ids, np.int32), draft.lengths),
        "edges": _lists(np.frombuffer(draft.edges, np.int32), draft.num_edges),
        "row_id": pa.array(draft.row_ids, pa.string()),
        "piece": pa.array(draft.pieces, pa.int32()),
    }
    facts = {"counts": dict(draft.counts), "reasons": dict(draft.reasons)}
    write_atomic(path, _ipc(pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts).encode()})))


def read_block(path: Path) -> Block:
    """The rows of a finished block, without copying them."""
    table = _mapped(path)
    ids, spans = table.column("ids").combine_chunks(), table.column("edges").combine_chunks()
    return Block(
        ids=ids.values.to_numpy(),
        starts=ids.offsets.to_numpy().astype("int64"),
        edges=spans.values.to_numpy(),
        edge_starts=spans.offsets.to_numpy().astype("int64"),
        row_ids=table.column("row_id").combine_chunks(),
        pieces=table.column("piece").to_numpy(),
        facts=json.loads(table.schema.metadata[FACTS]),
    )


def read_ledger(path: Path) -> Any | None:
    """The ledger entries of a finished block as an Arrow table; None when it has none."""
    return _mapped(_ledger_path(path)) if _ledger_path(path).is_file() else None


def _ledger_path(path: Path) -> Path:
    return path.with_suffix(".ledger.arrow")


def _lists(values: np.ndarray, sizes: Sequence[int]) -> Any:
    import numpy as np
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(edges(np.asarray(sizes, np.int64)).astype(np.int32)), pa.array(values))


def _ipc(table: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return sink.getvalue().to_pybytes()


def _mapped(path: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
