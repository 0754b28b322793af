"""Rows of the train split that hold a row of the recipe's own holdout: what is trained on would be asked again.

Near-equal rows are in one split already; this finds a holdout question inside a longer row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ft_pipeline.curate.benchmark_index import Index, holdout_index
from ft_pipeline.curate.contamination import Scanner, action_of
from ft_pipeline.curate.examined import Examined
from ft_pipeline.curate.fate import HOLDOUT, TRAIN, Fates
from ft_pipeline.recipe import Contamination
from ft_pipeline.workers.messages import Listener, ignore, progress
from ft_pipeline.workers.pool import Workforce

FEW_ROWS = 1 << 16
"""Below so many rows no further process is started."""
Found = dict[int, dict[str, Any]]


def in_holdout(
    table: Examined, fates: Fates, config: Contamination, *, workforce: Workforce, listener: Listener = ignore
) -> Found:
    """Fit row of the train split -> what it shares with which row of the holdout, best covered first; empty when the policy is off."""
    held = fates.rows_of(HOLDOUT)
    if config.holdout == "off" or not len(held):
        return {}
    ids = table.row_ids(table.global_ordinal[held])
    index = holdout_index(_texts(table, held), ids)
    workforce = workforce if len(fates.fate) > FEW_ROWS else workforce.alone()
    place = table if workforce.is_here else table.folders
    begin = {"initializer": _begin, "initargs": (place, index, (fates.fate == TRAIN, config))}
    work = workforce.map(_scanned, range(len(table.blocks)), stage="look for holdout rows", **begin)
    found: Found = {}
    for number, hits in enumerate(work, 1):
        found |= hits
        progress(listener, "curate: look for holdout rows", number, total=len(table.blocks), unit="block")
    return found


def _texts(table: Examined, rows: np.ndarray) -> list[str]:
    sides = zip(table.take_texts("prompt", rows), table.take_texts("response", rows), strict=True)
    return [f"{prompt}\n{response}" if prompt else response for prompt, response in sides]


@dataclass(frozen=True, slots=True)
class _Opened:
    table: Examined
    scanner: Scanner
    trained: np.ndarray


_opened: _Opened | None = None
"""Of this process."""


def _begin(table: Examined | tuple[Path, ...], index: Index, held: tuple[np.ndarray, Contamination]) -> None:
    global _opened
    trained, config = held
    scanner = Scanner([index], threshold=config.threshold, action=action_of(config.holdout))
    _opened = _Opened(table if isinstance(table, Examined) else Examined(table), scanner, trained)


def _scanned(block: int) -> Mapping[int, dict[str, Any]]:
    if _opened is None:
        raise RuntimeError("_begin() comes first")
    start, stop = _opened.table.starts[block], _opened.table.starts[block + 1]
    rows = np.flatnonzero(_opened.trained[start:stop]) + start
    found: Found = {}
    for hit in _opened.scanner.scan(_texts(_opened.table, rows)):
        if hit.item_id:
            found.setdefault(int(rows[hit.row]), hit.evidence())
    return found
