"""Rows that differ between two versions of a curated dataset, for a reader: what they say, and what the ledger says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ft_pipeline.curate.artifact import SPLITS
from ft_pipeline.curate.comparison import written
from ft_pipeline.curate.difference import CHANGES, COLUMNS, Change, Difference, dropped_rows
from ft_pipeline.store.artifacts import Artifact

SHOWN_CHARACTERS = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row that differs, with what the ledger says."""

    change: Change
    row_id: str
    new_row_id: str | None
    """Another id than `row_id` when another row stands at its place in the raw file."""
    origin: str
    split: str
    new_split: str | None
    reason: str
    evidence: Mapping[str, Any]
    """Of the ledger of the version that does not have the row."""
    text: str
    """The row's first characters; of a changed row, and of one that another stands for, from a little before the first difference."""
    new_text: str | None
    """Of a changed row."""
    stands_for: str | None
    """Id of the row that is kept in its place."""
    stands_for_text: str | None


def examples(found: Difference, before: Artifact, after: Artifact, *, num_rows: int) -> list[Example]:
    """At most so many rows of each change, one of each reason before a second of any; the only place where contents are read."""
    import polars as pl

    turn = pl.int_range(pl.len()).over("change", "reason")
    ranked = found.rows.with_columns(turn=turn).sort("change", "turn", "reason", maintain_order=True)
    chosen = ranked.filter(pl.int_range(pl.len()).over("change") < num_rows).to_dicts()
    chosen.sort(key=lambda row: CHANGES.index(row["change"]))
    lacking = {"removed": after, "added": before}
    evidence = {row["row_id"]: {} for row in chosen}
    for change, home in lacking.items():
        evidence |= _evidence(home, [row for row in chosen if row["change"] == change])
    kept = {row_id: said["kept_id"] for row_id, said in evidence.items() if "kept_id" in said}
    texts = [
        _texts(before, {*(r["row_id"] for r in chosen), *kept.values()}),
        _texts(after, {*(r["row_id"] for r in chosen), *(r["new_row_id"] for r in chosen), *kept.values()}),
    ]
    return [_example(row, evidence[row["row_id"]], texts, stands_for=kept.get(row["row_id"])) for row in chosen]


def _evidence(curated: Artifact, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Row id -> evidence of the line that drops it, or the row that stands at its place."""
    import polars as pl

    ids = [row["new_row_id"] or row["row_id"] for row in rows]
    lines = dropped_rows(curated).filter(pl.col("row_id").is_in(ids)).select("row_id", "reason", "evidence").collect()
    told = {row_id: (reason, json.loads(evidence)) for row_id, reason, evidence in lines.iter_rows()}
    found = {}
    for row, name in zip(rows, ids, strict=True):
        reason, evidence = told.get(name, ("", {}))
        found[row["row_id"]] = {"line_holds": name, "reason": reason, **evidence} if row["new_row_id"] else evidence
    return found


def _texts(curated: Artifact, ids: set[str | None]) -> dict[str, Words]:
    """Texts of kept rows and excerpts of dropped ones, by id."""
    import polars as pl

    wanted = pl.col("row_id").is_in([i for i in ids if i])
    excerpts = dropped_rows(curated).filter(wanted).select("row_id", "excerpt").collect()
    found = {row_id: Words(excerpt, excerpt) for row_id, excerpt in excerpts.iter_rows()}
    for split in SPLITS:
        rows = pl.scan_parquet(curated.file(f"{split}.parquet")).filter(wanted).select("row_id", "shape", "content")
        found |= {row_id: _told(*row) for row_id, *row in rows.collect(engine="streaming").iter_rows()}
    return found


def _told(shape: str, content: str) -> Words:
    prompt, response = written(shape, json.loads(content))
    return Words(f"{prompt} => {response}" if prompt else response, content)


def _example(
    row: Mapping[str, Any], evidence: Mapping[str, Any], texts: list[dict[str, Words]], *, stands_for: str | None
) -> Example:
    home, other = texts if row["change"] != "added" else reversed(texts)
    this, new, kept = home.get(row["row_id"], NOTHING), None, None
    if row["change"] == "changed":
        new = other.get(row["new_row_id"], NOTHING)
    elif stands_for:
        kept = other.get(stands_for, NOTHING)
    beside = new or kept
    text, second = _apart(this, beside) if beside else (_cut(this.plain, 0), None)
    return Example(
        **{name: row[name] for name in COLUMNS}, evidence=evidence, text=text, new_text=second if new else None,
        stands_for=stands_for, stands_for_text=second if kept else None,
    )  # fmt: skip


def _apart(one: Words, other: Words) -> tuple[str, str]:
    """Both from a little before the first difference; rows that say the same may differ in a weight or a label."""
    texts = (one.plain, other.plain) if one.plain != other.plain else (one.whole, other.whole)
    shorter = min(map(len, texts))
    at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), shorter)
    start = max(at - SHOWN_CHARACTERS // 4, 0)
    return _cut(texts[0], start), _cut(texts[1], start)


def _cut(text: str, start: int) -> str:
    shown = text[start : start + SHOWN_CHARACTERS]
    return ("... " if start else "") + shown + (" ..." if start + SHOWN_CHARACTERS < len(text) else "")


class Words(NamedTuple):
    """A row for a reader, and its canonical JSON."""

    plain: str
    whole: str


NOTHING = Words("", "")
