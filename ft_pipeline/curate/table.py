"""Rows as a Parquet file written piece by piece, with a digest over their values: Parquet's bytes change with the library."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ft_pipeline.store.fingerprint import sha256_json

GROUP_ROWS = 16_384
NUMBERS = {"whole_j": "float64", "prompt_j": "float64", "response_j": "float64", "band": "int32"}
"""Columns that are no text, and may be null."""


class TableWriter:
    """A Parquet file (zstandard) of text columns, and of the number columns of `NUMBERS`; use it in a `with`."""

    def __init__(self, path: Path, columns: Sequence[str], numbers: Mapping[str, str] = NUMBERS) -> None:
        """Opens the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [(name, getattr(pa, numbers[name])() if name in numbers else pa.string()) for name in columns]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", write_statistics=False)
        self._digests = {name: (hashlib.sha256(), hashlib.sha256()) for name in columns}
        self._waiting: list[Any] = []
        self.num_rows = 0

    def write(self, values: Mapping[str, Sequence[Any]]) -> None:
        """Appends rows, given by column."""
        import pyarrow as pa

        arrays = [pa.array(values[field.name], field.type) for field in self._schema]
        for field, array in zip(self._schema, arrays, strict=True):
            _add(self._digests[field.name], array)
        self._waiting.append(pa.record_batch(arrays, schema=self._schema))
        self.num_rows += len(arrays[0])
        if sum(len(batch) for batch in self._waiting) >= GROUP_ROWS:
            self._flush()

    def digest(self) -> str:
        """sha256 of all values by column, however they came in pieces."""
        return sha256_json({name: [part.hexdigest() for part in pair] for name, pair in self._digests.items()})

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
            self._waiting = []

    def __enter__(self) -> TableWriter:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes what waits, and closes the file."""
        if kind is None:
            self._flush()
        self._writer.close()


def _add(digests: tuple[Any, Any], array: Any) -> None:
    """Lengths and bytes of texts, nulls and values of numbers: two streams, so that the pieces rows come in do not matter."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_string(array.type):
        _, offsets, content = array.buffers()
        ends = np.frombuffer(offsets, np.int32, len(array) + 1) if len(array) else np.zeros(1, np.int32)
        digests[0].update(np.diff(ends).astype("<i4").tobytes())
        digests[1].update(memoryview(content or b"")[: int(ends[-1])])
        return
    digests[0].update(np.asarray(array.is_valid()).tobytes())
    digests[1].update(np.nan_to_num(np.asarray(array.fill_null(0), "<f8")).tobytes())
