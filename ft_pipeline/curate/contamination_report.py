"""What was found, by benchmark item: the rows of `contamination.parquet`."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.curate.artifact import CONTAMINATION_COLUMNS

MAX_ROW_IDS = 5
NUMBERS = {"rows": "int64", "rows_trained": "int64", "bench_cov": "float64", "train_frac": "float64"}
"""Columns of `contamination.parquet` that are no text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemReport:
    """A row of `contamination.parquet`; fields as in CONTAMINATION_COLUMNS."""

    benchmark: str
    item_id: str
    item_sha256: str
    rows: int
    rows_trained: int
    bench_cov: float
    train_frac: float
    row_ids: str
    text: str


def report(findings: Iterable[tuple[str, Mapping[str, Any]]], trained: Container[str]) -> list[ItemReport]:
    """A row per benchmark item, by benchmark and id. `findings`: row id and evidence of every flag, also of dropped rows.

    `trained`: ids of the rows in the train split. The order of the findings does not matter.
    """
    by_item: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row_id, evidence in findings:
        key = (evidence["benchmark"], evidence["item"], evidence["item_sha256"])
        rows = by_item.setdefault(key, {})
        before = rows.get(row_id)
        if before is None or before["bench_cov"] < evidence["bench_cov"]:
            rows[row_id] = evidence
    return [_item(key, rows, trained) for key, rows in sorted(by_item.items(), key=lambda pair: pair[0])]


def columns(items: Sequence[ItemReport]) -> dict[str, list[Any]]:
    """The report by column, as it is written."""
    return {name: [getattr(item, name) for item in items] for name in CONTAMINATION_COLUMNS}


def _item(key: tuple[str, str, str], rows: Mapping[str, Mapping[str, Any]], trained: Container[str]) -> ItemReport:
    ids = sorted(rows, key=lambda row_id: (-rows[row_id]["bench_cov"], row_id))
    benchmark, item_id, item_sha256 = key
    return ItemReport(
        benchmark=benchmark, item_id=item_id, item_sha256=item_sha256, rows=len(rows),
        rows_trained=sum(row_id in trained for row_id in rows),
        bench_cov=max(e["bench_cov"] for e in rows.values()), train_frac=max(e["train_frac"] for e in rows.values()),
        row_ids=json.dumps(ids[:MAX_ROW_IDS]), text=rows[ids[0]]["text"],
    )  # fmt: skip
