"""Windows as Parquet shards: zstd, BYTE_STREAM_SPLIT token ids (1.55 B per token), 64-window row groups, logical digests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.columns import ColumnsDigest, edges
from ft_pipeline.encode.gather import Rows, Spilled, gather
from ft_pipeline.encode.pack import Packing

if TYPE_CHECKING:
    import numpy as np

    from ft_pipeline.store.artifacts import Draft

GROUP_WINDOWS = 64
SHARD_TOKENS = 1 << 25
"""32 Mi tokens: about 50 MB on disk, 128 MiB in memory while it is written."""


class TableFile:
    """A Parquet file of the draft that is written part by part; its logical digest is noted at the end."""

    def __init__(self, draft: Draft, name: str, schema: Any, **options: Any) -> None:
        import pyarrow.parquet as pq

        self._draft, self._name, self._digest = draft, name, ColumnsDigest()
        self._file = pq.ParquetWriter(draft.folder / name, schema, compression="zstd", **options)

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._draft.logical[self._name] = self._digest.hexdigest()

    def write(self, table: Any, **options: Any) -> None:
        """The next rows."""
        self._digest.add(table)
        self._file.write_table(table, **options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Some windows of a split: `rows` one behind the other, window w holds `rows[offsets[w]:offsets[w + 1]]`."""

    name: str
    rows: Rows
    offsets: np.ndarray


def shards_of(split: str, content: tuple[Spilled, Packing]) -> Iterator[Shard]:
    """The shards of a split in order, each gathered when it is asked for."""
    encoded, packing = content
    for number, (first, last) in enumerate(_cuts(encoded, packing)):
        offsets = packing.offsets[first : last + 1]
        rows = gather(encoded, packing.order[offsets[0] : offsets[-1]])
        yield Shard(name=f"{split}-{number:05d}.parquet", rows=rows, offsets=offsets - offsets[0])


def write_shard(draft: Draft, shard: Shard) -> None:
    """Writes one file of windows into the draft."""
    table = windows_table(shard)
    options = {"use_dictionary": ["row_ids.list.element"], "use_byte_stream_split": ["input_ids.list.element"]}
    with TableFile(draft, shard.name, table.schema, **options) as file:
        file.write(table, row_group_size=GROUP_WINDOWS)


def windows_table(shard: Shard) -> Any:
    """Arrow columns input_ids, loss_spans (start, end, ... within the window), seq_lengths, row_ids: a list a window each."""
    import numpy as np
    import pyarrow as pa

    rows, offsets = shard.rows, shard.offsets
    spans = rows.edges + np.repeat(_starts(shard), rows.num_edges).astype(np.int32)

    def lists(values: Any, ends: np.ndarray) -> Any:
        return pa.ListArray.from_arrays(pa.array(ends[offsets].astype(np.int32)), pa.array(values))

    return pa.table(
        {
            "input_ids": lists(rows.ids, edges(rows.lengths)),
            "loss_spans": lists(spans, edges(rows.num_edges)),
            "seq_lengths": lists(rows.lengths, np.arange(len(rows.lengths) + 1)),
            "row_ids": lists(rows.row_ids, np.arange(len(rows.lengths) + 1)),
        }
    )


def index_table(split: str, shard: Shard) -> Any:
    """Where each row of a shard is: row_id, split, shard, window (within the shard), piece, start, tokens, trained_tokens."""
    import numpy as np
    import pyarrow as pa

    rows, num_rows = shard.rows, len(shard.rows.lengths)
    windows = np.repeat(np.arange(len(shard.offsets) - 1, dtype=np.int32), np.diff(shard.offsets))
    sums, ends = edges(rows.edges[1::2] - rows.edges[::2]), edges(rows.num_edges) // 2
    return pa.table(
        {
            "row_id": rows.row_ids,
            "split": pa.array([split]).take(pa.array(np.zeros(num_rows, np.int8))),
            "shard": pa.array([shard.name]).take(pa.array(np.zeros(num_rows, np.int8))),
            "window": windows,
            "piece": rows.pieces,
            "start": _starts(shard).astype(np.int32),
            "tokens": rows.lengths,
            "trained_tokens": (sums[ends[1:]] - sums[ends[:-1]]).astype(np.int32),
        }
    )


def _starts(shard: Shard) -> np.ndarray:
    """Where each row begins in its window."""
    import numpy as np

    places, counts = edges(shard.rows.lengths), np.diff(shard.offsets)
    return places[:-1] - np.repeat(places[shard.offsets[:-1]], counts)


def _cuts(encoded: Spilled, packing: Packing) -> Iterator[tuple[int, int]]:
    """First window and the one behind the last of each shard: a shard ends with the window that brings it to 32 Mi tokens."""
    import numpy as np

    behind = edges(encoded.lengths[packing.order])[packing.offsets]
    first = 0
    while first < len(packing):
        last = int(np.searchsorted(behind, behind[first] + SHARD_TOKENS))
        yield first, min(last, len(packing))
        first = min(last, len(packing))
