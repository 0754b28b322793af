"""Tables column by column: the logical digest of what a Parquet file says, and ragged rows of flat arrays. No Python per row."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class ColumnsDigest:
    """SHA-256 over the columns of a table that comes in parts: names, lengths of strings and lists, values.

    The same however the rows are cut into parts and whatever library version wrote them. Knows strings, numbers and lists of them.
    """

    def __init__(self) -> None:
        self._streams: dict[str, Any] = {}

    def add(self, table: Any) -> None:
        """The next rows: an Arrow table or record batch."""
        import pyarrow as pa

        for name in table.column_names:
            column = table.column(name)
            for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                self._column(name, chunk)

    def hexdigest(self) -> str:
        """Of all rows so far."""
        whole = hashlib.sha256()
        for name, stream in sorted(self._streams.items()):
            whole.update(f"{name}:{stream.hexdigest()}\n".encode())
        return whole.hexdigest()

    def _column(self, name: str, array: Any) -> None:
        import numpy as np
        import pyarrow as pa

        if pa.types.is_string(array.type):
            offsets, data = string_bytes(array)
            self._update(f"{name}/lengths", np.diff(offsets).astype("<i8"))
            self._update(f"{name}/text", data)
        elif pa.types.is_list(array.type):
            self._update(f"{name}/lengths", np.diff(array.offsets.to_numpy()).astype("<i8"))
            self._column(f"{name}/items", array.flatten())
        else:
            values = array.to_numpy(zero_copy_only=False)
            self._update(name, values.astype(values.dtype.newbyteorder("<"), copy=False))

    def _update(self, name: str, data: Any) -> None:
        self._streams.setdefault(name, hashlib.sha256()).update(memoryview(data).cast("B"))


def string_bytes(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [n + 1], from 0 on, and UTF-8 bytes of an Arrow string array without nulls."""
    import numpy as np

    buffers = array.buffers()
    offsets = np.frombuffer(buffers[1], np.int32, len(array) + 1, array.offset * 4) if len(array) else np.zeros(1, int)
    data = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None else np.zeros(0, np.uint8)
    return offsets - offsets[0], data[offsets[0] : offsets[-1]]


def ragged(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Places start, start + 1, ... of each of many pieces, one piece behind the other: int64 [sum of sizes]."""
    import numpy as np

    if len(sizes) == 0:
        return np.zeros(0, np.int64)
    ends = np.cumsum(sizes, dtype=np.int64)
    return np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)


def edges(sizes: np.ndarray) -> np.ndarray:
    """Where each of many pieces begins, and where the last one ends: int64 [pieces + 1]."""
    import numpy as np

    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
