"""Rows as examined blocks, without reading or filtering: for tests and benches of the search for duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ft_pipeline.curate.comparison import Comparable
from ft_pipeline.curate.examined import Examined, write_block
from ft_pipeline.curate.signing import keys_of, signed


def table_of(
    rows: Sequence[tuple[int, Comparable]],
    folder: Path,
    *,
    block_rows: int = 7,
    scores: Sequence[float] | None = None,
    threshold: float = 0.9,
) -> Examined:
    """The rows, each with the number that its id is made of, in blocks of so many."""
    folders = []
    for start in range(0, len(rows), block_rows):
        part = rows[start : start + block_rows]
        folders.append(folder / f"{start:06}")
        write(folders[-1], part, scores=(scores or [1.0] * len(rows))[start : start + block_rows], threshold=threshold)
    return Examined(folders)


def write(
    folder: Path, rows: Sequence[tuple[int, Comparable]], *, scores: Sequence[float], threshold: float = 0.9
) -> None:
    """One block."""
    compared = [row for _, row in rows]
    columns: dict[str, Any] = {name: [""] * len(rows) for name in ("shape", "content", "excerpt")}
    columns |= {"prompt": [r.prompt for r in compared], "response": [r.response for r in compared]}
    numbers = {
        "all_keys": np.array([key for key, _ in rows], np.uint64),
        "all_numbers": np.arange(len(rows), dtype=np.int32),
        "ordinal": np.arange(len(rows), dtype=np.int32),
        "score": np.array(scores, np.float32),
        "dropped": np.zeros(len(rows), bool),
        **keys_of(compared),
        **signed([r.whole for r in compared], columns["prompt"], threshold=threshold),
    }
    write_block(
        folder, columns, numbers, entries=[], flags=[], counts={"rows": len(rows), "fit": len(rows), "layouts": {}}
    )
