"""What becomes of each fit row: a split, or the reason why it is in none. The only place where a row's fate is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ft_pipeline.curate.artifact import SPLITS
from ft_pipeline.curate.deduplicate import Duplicates
from ft_pipeline.curate.examined import Examined
from ft_pipeline.curate.splits import split_of
from ft_pipeline.recipe import Source, Splits

TRAIN, VALIDATION, HOLDOUT = range(len(SPLITS))
FLAGGED, EXACT, NEAR, NOT_DRAWN, IN_HOLDOUT = range(len(SPLITS), len(SPLITS) + 5)
MIX = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fates:
    """By number of fit row."""

    fate: np.ndarray
    """int8: 0 to 2 a split, above it why not."""
    cluster_ids: list[str]
    """Name of the row's cluster; empty for rows that are in no split."""

    def rows_of(self, fate: int) -> np.ndarray:
        """Numbers of the rows with this fate."""
        return np.flatnonzero(self.fate == fate)


def fates(table: Examined, duplicates: Duplicates, shares: Splits, *, mix: Sequence[Source], sources: Any) -> Fates:
    """The fate of every fit row. `sources`: name of each block's source."""
    fate = np.zeros(table.starts[-1], np.int8)
    fate[table.column("dropped")] = FLAGGED
    fate[duplicates.exact >= 0] = EXACT
    fate[duplicates.near >= 0] = NEAR
    kept = np.flatnonzero(fate == TRAIN)
    heads = duplicates.cluster[kept]
    distinct, place = np.unique(heads, return_inverse=True)
    names = table.row_ids(table.global_ordinal[distinct])
    splits = np.array([SPLITS.index(split_of(name, shares)) for name in names], np.int8)
    source = np.repeat(np.asarray(sources, object), table.num_fit)
    for split, asked in _asked_for(duplicates, mix, source=source).items():
        splits[np.isin(distinct, asked)] = split
    fate[kept] = splits[place] if len(kept) else fate[kept]
    _draw(table, fate, mix, source=source)
    cluster_ids = [""] * len(fate)
    for row, at in zip(kept.tolist(), place.tolist(), strict=True):
        cluster_ids[row] = names[at]
    return Fates(fate=fate, cluster_ids=cluster_ids)


def _asked_for(duplicates: Duplicates, mix: Sequence[Source], *, source: np.ndarray) -> dict[int, np.ndarray]:
    """Split -> clusters with a row of a source that belongs there as a whole. The holdout comes last: what is in both decides the gate."""
    head = np.where(duplicates.exact >= 0, duplicates.cluster[duplicates.exact], duplicates.cluster)
    named = {split: [one.name for one in mix if one.split == SPLITS[split]] for split in (VALIDATION, HOLDOUT)}
    return {split: np.unique(head[np.isin(source, names)]) for split, names in named.items() if names}


def _draw(table: Examined, fate: np.ndarray, mix: Sequence[Source], *, source: np.ndarray) -> None:
    """Caps and shares of the further sources: what is too much is left out, by hash of the row, so that every run leaves out the same."""
    for one in mix:
        if one.cap is not None:
            rows = np.flatnonzero((source == one.name) & (fate <= HOLDOUT))
            fate[_last_by_hash(table, rows, one.cap)] = NOT_DRAWN
    shared = [one for one in mix if one.share is not None]
    named = [one.name for one in shared]
    free = int(((fate == TRAIN) & ~np.isin(source, named)).sum())
    total = free / (1 - sum(one.share or 0 for one in shared))
    for one in shared:
        rows = np.flatnonzero((source == one.name) & (fate == TRAIN))
        fate[_last_by_hash(table, rows, round(total * (one.share or 0)))] = NOT_DRAWN


def _last_by_hash(table: Examined, rows: np.ndarray, count: int) -> np.ndarray:
    ordinals = table.global_ordinal[rows]
    keys = (table.column("all_keys")[ordinals] ^ table.repeats[ordinals].astype(np.uint64)) * MIX
    return rows[np.argsort(keys ^ (keys >> np.uint64(32)), kind="stable")[count:]]
