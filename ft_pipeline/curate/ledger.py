"""The ledger and the flags of one block as columns: nothing is dropped or changed without a line."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ft_pipeline.curate import fate
from ft_pipeline.curate.artifact import FLAG_COLUMNS, LEDGER_COLUMNS, Reason
from ft_pipeline.curate.deduplicate import Duplicates
from ft_pipeline.curate.edges import RELATIONS, Edges
from ft_pipeline.curate.examined import ENTRIES, FLAGS, Examined

Columns = dict[str, list[Any]]
STAGES = {
    fate.EXACT: ("exact_duplicate", Reason.EXACT_DUPLICATE),
    fate.NEAR: ("near_duplicate", Reason.NEAR_DUPLICATE),
    fate.NOT_DRAWN: ("mix", Reason.NOT_DRAWN),
    fate.IN_HOLDOUT: ("contamination", Reason.CONTAMINATED),
}
"""Fate -> stage and reason of its line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Names and places of the rows of a table."""

    table: Examined
    names: list[str]
    """File of each block."""
    firsts: list[int]
    """Number of each block's first line."""
    sources: list[str]
    """Name of each block's source."""
    holdout: Mapping[int, Mapping[str, Any]]
    """Fit row -> what it shares with a row of the holdout."""

    def of_block(self, block: int, ordinals: np.ndarray) -> tuple[list[str], list[str]]:
        """Row ids and origins of rows of a block, by their place in it."""
        everywhere = ordinals + self.table.all_starts[block]
        lines = self.table.column_of(block, "all_numbers")[ordinals] + self.firsts[block]
        return self.table.row_ids(everywhere), [f"{self.names[block]}:{line}" for line in lines.tolist()]

    def of_fit(self, rows: np.ndarray) -> tuple[list[str], list[str]]:
        """Row ids and origins of fit rows."""
        ids = self.table.row_ids(self.table.global_ordinal[rows])
        block = np.searchsorted(self.table.starts, rows, side="right") - 1
        lines = self.table.column("all_numbers")[self.table.global_ordinal[rows]]
        places = zip(block.tolist(), lines.tolist(), strict=True)
        return ids, [f"{self.names[b]}:{self.firsts[b] + line}" for b, line in places]


def block_ledger(rows: Rows, block: int, fates: fate.Fates, *, duplicates: Duplicates) -> Columns:
    """The ledger lines of a block by column, in order of the rows."""
    lines = [*_examined(rows, block), *_decided(rows, block, fates, duplicates=duplicates)]
    lines.sort(key=lambda line: line["ordinal"])
    return _columns(rows, block, lines, columns=LEDGER_COLUMNS)


def block_flags(rows: Rows, block: int, fates: fate.Fates) -> Columns:
    """Every flag of a block by column, those of the own holdout behind."""
    flags = list(rows.table.blocks[block].told(FLAGS))
    start, stop = rows.table.starts[block], rows.table.starts[block + 1]
    ordinals = rows.table.column_of(block, "ordinal")
    for row in sorted(row for row in rows.holdout if start <= row < stop):
        action = "drop" if fates.fate[row] == fate.IN_HOLDOUT else "note"
        evidence = json.dumps(rows.holdout[row], sort_keys=True)
        told = {"filter": "holdout", "action": action, "reason": str(Reason.CONTAMINATED), "evidence": evidence}
        flags.append({"ordinal": int(ordinals[row - start]), **told})
    return _columns(rows, block, flags, columns=FLAG_COLUMNS)


def edge_columns(edges: Edges, rows: Rows) -> Columns:
    """The edges by column."""
    pairs = edges.pairs
    return {
        "kept_id": rows.of_fit(pairs.left)[0],
        "other_id": rows.of_fit(pairs.right)[0],
        "relation": [RELATIONS[r] for r in edges.relation.tolist()],
        "whole_j": _rounded(pairs.whole),
        "prompt_j": _rounded(pairs.prompt),
        "response_j": _rounded(pairs.response),
        "band": pairs.band.tolist(),
    }


def _examined(rows: Rows, block: int) -> Iterator[dict[str, Any]]:
    """What reading and validating found, and the filters."""
    yield from rows.table.blocks[block].told(ENTRIES)
    excerpts = _Excerpts(rows.table, block)
    gone: set[int] = set()
    for flag in rows.table.blocks[block].told(FLAGS):
        if flag["action"] == "note" or (flag["action"] == "drop" and flag["ordinal"] in gone):
            continue
        dropped = flag["action"] == "drop"
        if dropped:
            gone.add(flag["ordinal"])
        action = "dropped" if dropped else "changed"
        yield {**flag, "action": action, "stage": flag["filter"], "excerpt": excerpts.of(flag["ordinal"])}


def _decided(rows: Rows, block: int, fates: fate.Fates, *, duplicates: Duplicates) -> Iterator[dict[str, Any]]:
    """What was found by comparing rows with each other."""
    start, stop = rows.table.starts[block], rows.table.starts[block + 1]
    ordinals, excerpts = rows.table.column_of(block, "ordinal"), _Excerpts(rows.table, block)
    for kind, (stage, reason) in STAGES.items():
        found = np.flatnonzero(fates.fate[start:stop] == kind) + start
        evidence = _evidence(rows, found, kind, duplicates=duplicates)
        for row, told in zip(found.tolist(), evidence, strict=True):
            ordinal = int(ordinals[row - start])
            yield {
                "ordinal": ordinal, "action": "dropped", "stage": stage, "reason": str(reason),
                "evidence": json.dumps(told, sort_keys=True), "excerpt": excerpts.of(ordinal),
            }  # fmt: skip


def _evidence(rows: Rows, found: np.ndarray, kind: int, *, duplicates: Duplicates) -> list[dict[str, Any]]:
    if kind == fate.NOT_DRAWN:
        return [{"cause": "the source's share or cap was reached"}] * len(found)
    if kind == fate.IN_HOLDOUT:
        return [dict(rows.holdout[row]) for row in found.tolist()]
    kept = (duplicates.exact if kind == fate.EXACT else duplicates.near)[found]
    ids, origins = rows.of_fit(kept)
    told: list[dict[str, Any]] = [{"kept_id": i, "kept_origin": o} for i, o in zip(ids, origins, strict=True)]
    if kind == fate.NEAR:
        numbers = duplicates.edge[found]
        columns = edge_columns(duplicates.edges.part(numbers), rows)
        for place, one in enumerate(told):
            one["edge"] = {name: values[place] for name, values in columns.items()}
    return told


def _columns(rows: Rows, block: int, lines: list[dict[str, Any]], *, columns: tuple[str, ...]) -> Columns:
    made: Columns = defaultdict(list)
    ids, origins = rows.of_block(block, np.array([line["ordinal"] for line in lines], np.int64))
    for name in columns:
        made[name] = {"row_id": ids, "origin": origins}.get(name) or [line[name] for line in lines]
    return made


class _Excerpts:
    """Excerpts of a block's fit rows, read when the first is asked for."""

    def __init__(self, table: Examined, block: int) -> None:
        self._table, self._block = table, block
        self._of: dict[int, str] | None = None

    def of(self, ordinal: int) -> str:
        if self._of is None:
            ordinals = self._table.column_of(self._block, "ordinal").tolist()
            texts = self._table.texts_of(self._block).column("excerpt").to_pylist()
            self._of = dict(zip(ordinals, texts, strict=True))
        return self._of[ordinal]


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if value != value else round(value, 6) for value in values.tolist()]
