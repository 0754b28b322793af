"""Pairs, labelled completions, prompts and judged steps as Parquet files of `packed_shards`: written in batches, found by `trace`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.example_rows import COLUMNS, Example, tokens_of, trained_of
from ft_pipeline.encode.shards import SHARD_TOKENS, TableFile
from ft_pipeline.encode.spans import Span
from ft_pipeline.errors import DataError

if TYPE_CHECKING:
    from ft_pipeline.store.artifacts import Draft

BATCH_ROWS = 1024
"""Rows of a row group, and all that is in memory at a time."""


@dataclass
class Written:
    """What a split holds."""

    rows: int = 0
    tokens: int = 0
    """That a training step reads: a pair's prompt counts twice."""
    trained_tokens: int = 0
    shards: list[str] = field(default_factory=list)


def write_examples(draft: Draft, split: str, rows: Iterable[Example], *, index: Callable[[Any], None]) -> Written:
    """Writes `<split>-00000.parquet`, ... of 32 Mi tokens with logical digests; no file when there is no row.

    index: takes Arrow tables of the columns of rows.parquet (row_id, split, shard, window, piece, start, tokens,
    trained_tokens), 1,024 rows at a time; the window is the row's number in its file. Raises DataError when the rows are of two kinds.
    """
    written, waiting = Written(), iter(rows)
    batch = list(islice(waiting, BATCH_ROWS))
    while batch:
        name = f"{split}-{len(written.shards):05d}.parquet"
        written.shards.append(name)
        kind, start, full = type(batch[0]), written.rows, written.tokens + SHARD_TOKENS
        with TableFile(draft, name, _schema(kind)) as file:
            while batch and written.tokens < full:
                file.write(_table(kind, batch))
                index(_index(batch, (split, name, written.rows - start)))
                written.rows += len(batch)
                written.tokens += sum(map(tokens_of, batch))
                written.trained_tokens += sum(map(trained_of, batch))
                batch = list(islice(waiting, BATCH_ROWS))
    return written


def _schema(kind: type) -> Any:
    import pyarrow as pa

    types = {"row_id": pa.string(), "answer": pa.string(), "label": pa.bool_(), "labels": pa.list_(pa.bool_())}
    return pa.schema([(name, types.get(name, pa.list_(pa.int32()))) for name in COLUMNS[kind]])


def _table(kind: type, batch: Sequence[Example]) -> Any:
    import pyarrow as pa

    if other := next((e for e in batch if type(e) is not kind), None):
        raise DataError(
            f"rows of two kinds: {batch[0].row_id} is a {kind.__name__.lower()}, {other.row_id} a {type(other).__name__.lower()}",
            cure="one layout for every source of a recipe",
        )
    schema = _schema(kind)
    columns = [
        [_flat(getattr(e, f.name)) if f.name.endswith("spans") else getattr(e, f.name) for e in batch] for f in schema
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _index(batch: Sequence[Example], place: tuple[str, str, int]) -> Any:
    import pyarrow as pa

    split, shard, first = place
    count = len(batch)
    return pa.table(
        {
            "row_id": pa.array([e.row_id for e in batch], pa.string()),
            "split": pa.array([split] * count, pa.string()),
            "shard": pa.array([shard] * count, pa.string()),
            "window": pa.array(range(first, first + count), pa.int32()),
            "piece": pa.array([0] * count, pa.int32()),
            "start": pa.array([0] * count, pa.int32()),
            "tokens": pa.array([tokens_of(e) for e in batch], pa.int32()),
            "trained_tokens": pa.array([trained_of(e) for e in batch], pa.int32()),
        }
    )


def _flat(spans: Sequence[Span]) -> list[int]:
    return [place for span in spans for place in span]
