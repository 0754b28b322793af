"""The files of a curated dataset, written block by block: splits, ledger, flags, edges, statistics, Croissant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np

from ft_pipeline.curate.artifact import (
    CONTAMINATION,
    CONTAMINATION_COLUMNS,
    EDGE_COLUMNS,
    EDGES,
    FLAG_COLUMNS,
    FLAGS,
    LEDGER,
    LEDGER_COLUMNS,
    ROW_COLUMNS,
    SPLITS,
    STATISTICS,
)
from ft_pipeline.curate.contamination_report import NUMBERS, report
from ft_pipeline.curate.deduplicate import Duplicates
from ft_pipeline.curate.examined import COUNTS, Examined
from ft_pipeline.curate.fate import HOLDOUT, TRAIN, Fates
from ft_pipeline.curate.ledger import Rows, block_flags, block_ledger, edge_columns
from ft_pipeline.curate.statistics import Tally, statistics
from ft_pipeline.curate.table import TableWriter
from ft_pipeline.recipe import Source
from ft_pipeline.store.artifacts import Draft
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.workers.messages import Listener, progress

EDGES_AT_ONCE = 1 << 16


def write_curated(
    draft: Draft,
    rows: Rows,
    fates: Fates,
    *,
    duplicates: Duplicates,
    mix: Sequence[Source],
    contamination: bool,
    listener: Listener,
) -> None:
    """Writes every file into the draft. `contamination`: the recipe names benchmarks, so there is a report on their items."""
    table, tally = rows.table, Tally()
    names = {f"{split}.parquet": ROW_COLUMNS for split in SPLITS} | {LEDGER: LEDGER_COLUMNS, FLAGS: FLAG_COLUMNS}
    with ExitStack() as stack:
        made = {n: stack.enter_context(TableWriter(draft.folder / n, columns)) for n, columns in names.items()}
        for block in range(len(table.blocks)):
            _write_block(made, rows, block, decided=(fates, duplicates, tally))
            _count_block(table, block, fates, tally=tally, source=rows.sources[block])
            progress(listener, "curate: write", block + 1, total=len(table.blocks), unit="block")
    _write_edges(draft, duplicates, rows)
    if contamination:
        _write_items(draft, tally)
    for name, writer in made.items():
        draft.logical[name] = writer.digest()
    safety = [one.name for one in mix if one.safety]
    numbers = statistics(tally, fates, duplicates, lengths=table.column("length"), safety=safety)
    write_atomic(draft.folder / STATISTICS, canonical_json(numbers) + b"\n")
    kept = int((fates.fate <= HOLDOUT).sum())
    draft.counts.update(rows_in=tally.rows_in, rows_kept=kept, rows_dropped=tally.rows_in - kept, **numbers["splits"])


def _write_block(
    made: dict[str, TableWriter], rows: Rows, block: int, *, decided: tuple[Fates, Duplicates, Tally]
) -> None:
    fates, duplicates, tally = decided
    ledger = block_ledger(rows, block, fates, duplicates=duplicates)
    flags = block_flags(rows, block, fates)
    tally.add_ledger(ledger)
    tally.add_flags(flags)
    made[LEDGER].write(ledger)
    made[FLAGS].write(flags)
    held = {i for i, f in zip(flags["row_id"], flags["filter"], strict=True) if f == "contamination"}
    start, stop = rows.table.starts[block], rows.table.starts[block + 1]
    for number, split in enumerate(SPLITS):
        chosen = np.flatnonzero(fates.fate[start:stop] == number)
        if len(chosen):
            columns = _split_columns(rows, block, chosen, fates=fates)
            tally.shapes.update(columns["shape"])
            made[f"{split}.parquet"].write(columns)
            if number == TRAIN:
                tally.trained |= held & set(columns["row_id"])


def _split_columns(rows: Rows, block: int, chosen: np.ndarray, *, fates: Fates) -> dict[str, Any]:
    start = rows.table.starts[block]
    texts = rows.table.texts_of(block).take(chosen)
    ids, origins = rows.of_block(block, rows.table.column_of(block, "ordinal")[chosen])
    return {
        "row_id": ids,
        "shape": texts.column("shape").to_pylist(),
        "content": texts.column("content").to_pylist(),
        "cluster": [fates.cluster_ids[start + place] for place in chosen.tolist()],
        "origin": origins,
        "source": [rows.sources[block]] * len(chosen),
    }


def _count_block(table: Examined, block: int, fates: Fates, *, tally: Tally, source: str) -> None:
    counts = table.blocks[block].told(COUNTS)
    tally.rows_in += counts["rows"]
    tally.layouts.update(counts["layouts"])
    tally.add_source(source, fates.fate[table.starts[block] : table.starts[block + 1]], counts["rows"])


def _write_edges(draft: Draft, duplicates: Duplicates, rows: Rows) -> None:
    pairs = duplicates.edges.pairs
    with TableWriter(draft.folder / EDGES, EDGE_COLUMNS) as writer:
        for start in range(0, max(len(pairs.left), 1), EDGES_AT_ONCE):
            writer.write(edge_columns(duplicates.edges.part(slice(start, start + EDGES_AT_ONCE)), rows))
    draft.logical[EDGES] = writer.digest()


def _write_items(draft: Draft, tally: Tally) -> None:
    items = [asdict(item) for item in report(tally.findings, tally.trained)]
    with TableWriter(draft.folder / CONTAMINATION, CONTAMINATION_COLUMNS, NUMBERS) as writer:
        writer.write({name: [item[name] for item in items] for name in CONTAMINATION_COLUMNS})
    draft.logical[CONTAMINATION] = writer.digest()
