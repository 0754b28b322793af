"""Rows as a Parquet file with a digest over their values: the bytes of Parquet change with the library that writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ft_pipeline.store.fingerprint import sha256_rows

NUMBERS = {"whole_j": "Float64", "prompt_j": "Float64", "response_j": "Float64", "band": "Int32"}
"""Columns that are no text."""


def write_table(path: Path, rows: Sequence[Any], columns: Sequence[str]) -> str:
    """Writes the named attributes of the rows as columns (zstandard); the logical digest of them, in order."""
    import polars as pl

    values = {column: [getattr(row, column) for row in rows] for column in columns}
    schema = {column: getattr(pl, NUMBERS.get(column, "String")) for column in columns}
    pl.DataFrame(
        {c: [str(v) if c not in NUMBERS else v for v in values[c]] for c in columns}, schema=schema
    ).write_parquet(path, compression="zstd", statistics=False)
    return sha256_rows([getattr(row, column) for column in columns] for row in rows)
