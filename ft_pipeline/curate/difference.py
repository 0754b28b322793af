"""Two versions of a curated dataset side by side: which rows came, went, changed or moved to another split, and why.

Rows are matched by id, which is made of the raw bytes, and those left over by their place in the raw file. Contents are compared by
hash and never parsed; in memory are only the rows that differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ft_pipeline.curate.artifact import LEDGER, SPLITS
from ft_pipeline.errors import DataError
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.manifest import Manifest, Ref

Change = Literal["added", "removed", "changed", "moved"]
CHANGES: tuple[Change, ...] = ("removed", "added", "changed", "moved")
NOT_IN_RAW, NEW_IN_RAW, OTHER_LINE = "not_in_raw_data", "new_in_raw_data", "other_line"
READ_OTHERWISE, OTHER_CLUSTER, OTHER_SHARES = "read_otherwise", "other_cluster", "other_shares"
EXPLAINED: Mapping[str, str] = {
    NOT_IN_RAW: "the raw data has this row no longer",
    NEW_IN_RAW: "the raw data did not have this row",
    OTHER_LINE: "at its place in the raw file stands another row",
    READ_OTHERWISE: "the same raw row is read otherwise: layout, mapping or code",
    OTHER_CLUSTER: "its cluster of variants is another one",
    OTHER_SHARES: "the shares of the splits are other ones",
}
"""Reasons that are not the ledger's."""
COLUMNS = ("change", "row_id", "origin", "split", "new_row_id", "new_split", "reason")
NEEDED = {"row_id", "shape", "content", "cluster", "origin", "source"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """Something that a dataset is made of, and that is other in the other version."""

    name: str
    """`pii.policy`, `raw`, `code`..."""
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonCount:
    """Rows that differ for one reason."""

    change: Change
    reason: str
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What is other in `after`. Of the rows of `before` each is unchanged, removed, changed or moved."""

    before: Ref
    after: Ref
    inputs: tuple[Input, ...]
    unchanged: int
    counts: Mapping[Change, int]
    """A row that changed and moved is counted as changed."""
    reasons: tuple[ReasonCount, ...]
    """By change, the commonest first."""
    rows: Any
    """polars: change, row_id, origin, split (before; of added rows after), new_row_id, new_split, reason; about 100 bytes a row."""


def difference(before: Artifact, after: Artifact) -> Difference:
    """What is other in the second dataset. Two of 960,000 rows of 480 characters, 93,000 of them other: 2.5 CPU-s and 0.5 GB.

    Raises DataError for a dataset that an older version of the house made.
    """
    import polars as pl

    for one in (before, after):
        _refuse_older(one)
    joined = _rows(before).join(_rows(after), on="row_id", how="full", suffix="_after", coalesce=True)
    same = (pl.col("split") == pl.col("split_after")) & (pl.col("text") == pl.col("text_after"))
    found = joined.filter(~same.fill_null(value=False)).collect(engine="streaming")
    gone, come = found.filter(pl.col("split_after").is_null()), found.filter(pl.col("split").is_null())
    edited = _edited(gone, come)
    parts = [
        _explained(gone.join(edited, on="row_id", how="anti"), "removed", home=before, other=after),
        _explained(_as_before(come).join(edited, left_on="row_id", right_on="new_row_id", how="anti"), "added", home=after, other=before),
        edited.with_columns(change=pl.lit("changed"), reason=pl.lit(OTHER_LINE)),
        _altered(found, before, after),
        _moved(found),
    ]  # fmt: skip
    rows = pl.concat([part.select(COLUMNS) for part in parts]).sort("change", "reason", "row_id")
    counts: dict[Change, int] = {change: rows.filter(pl.col("change") == change).height for change in CHANGES}
    kept = before.manifest.counts["rows_kept"]
    return Difference(
        before=before.ref, after=after.ref, inputs=changed_inputs(before.manifest, after.manifest),
        unchanged=kept - counts["removed"] - counts["changed"] - counts["moved"], counts=counts, reasons=_reasons(rows), rows=rows,
    )  # fmt: skip


def changed_inputs(before: Manifest, after: Manifest) -> tuple[Input, ...]:
    """Fields of the recipe's curate section, parents and code that are not the same, by name."""
    sides = [
        {**_flat(m.config), **{role: ref.digest[:12] for role, ref in m.parents.items()}, "code": m.code[:12]}
        for m in (before, after)
    ]
    names = sorted(sides[0].keys() | sides[1].keys())
    return tuple(
        Input(name=name, before=sides[0].get(name, "-"), after=sides[1].get(name, "-"))
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    )


def _refuse_older(curated: Artifact) -> None:
    import polars as pl

    lacking = NEEDED - set(pl.read_parquet_schema(curated.file(f"{SPLITS[0]}.parquet")))
    if lacking:
        raise DataError(
            f"curated_dataset {curated.ref.digest[:12]} has no column {', '.join(sorted(lacking))}",
            why="An older version of ft_pipeline made it.",
            cure="run its recipe again: only what is missing is made anew",
        )


def _rows(curated: Artifact) -> Any:
    """All kept rows, lazily: hashes in place of cluster and content."""
    import polars as pl

    return pl.concat(
        [
            pl.scan_parquet(curated.file(f"{split}.parquet")).select(
                "row_id", "source", "origin", split=pl.lit(split), cluster=pl.col("cluster").hash(),
                text=pl.col("content").hash() ^ pl.col("shape").hash(1),
            )
            for split in SPLITS
        ]
    )  # fmt: skip


def _as_before(come: Any) -> Any:
    return come.select("row_id", *(c for c in come.columns if c.endswith("_after"))).rename(
        lambda c: c.removesuffix("_after")
    )


def _edited(gone: Any, come: Any) -> Any:
    """Rows whose raw line is another one now."""
    place = ["source", "origin"]
    new = _as_before(come).select(*place, new_row_id="row_id", new_split="split")
    return gone.select(*place, "row_id", "split").join(new, on=place).select("row_id", "origin", "split", "new_row_id", "new_split")  # fmt: skip


def _explained(rows: Any, change: Change, *, home: Artifact, other: Artifact) -> Any:
    """Why rows of one version are not in the other: its ledger, or its raw data do not have them."""
    import polars as pl

    said = dropped_rows(other).join(rows.lazy().select("row_id"), on="row_id", how="semi").collect(engine="streaming")
    whole = rows.join(said.select("row_id", "reason"), on="row_id", how="left")
    replaced = _replaced(whole.filter(pl.col("reason").is_null()), home, other)
    whole = whole.join(replaced, on="row_id", how="left")
    absent = pl.when(pl.col("new_row_id").is_null()).then(pl.lit(NOT_IN_RAW if change == "removed" else NEW_IN_RAW))
    return whole.with_columns(
        change=pl.lit(change),
        new_split=pl.lit(None, pl.String),
        reason=pl.coalesce("reason", absent, pl.lit(OTHER_LINE)),
    )


def _replaced(rows: Any, home: Artifact, other: Artifact) -> Any:
    """Rows that are not in the other raw data, but at whose place stands a row there that is dropped, and that is new."""
    import polars as pl

    places = rows.select("row_id", "origin").unique("origin", keep="none")
    found = (
        dropped_rows(other)
        .select("origin", new_row_id="row_id")
        .join(places.lazy(), on="origin")
        .collect(engine="streaming")
    )
    for known in (_rows(home), dropped_rows(home)):
        ids = known.select("row_id").join(found.lazy(), left_on="row_id", right_on="new_row_id", how="semi")
        found = found.join(ids.collect(engine="streaming"), left_on="new_row_id", right_on="row_id", how="anti")
    return found.unique("row_id", keep="none").select("row_id", pl.col("new_row_id"))


def _altered(found: Any, before: Artifact, after: Artifact) -> Any:
    """Rows of the same raw bytes with another content."""
    import polars as pl

    rows = found.filter((pl.col("text") != pl.col("text_after")).fill_null(value=False))
    ids = rows.lazy().select("row_id")
    told = [
        pl.scan_parquet(curated.file(LEDGER))
        .filter(pl.col("action") == "changed")
        .join(ids, on="row_id", how="semi")
        .group_by("row_id")
        .agg(pl.col("reason").unique().sort().str.join(", "))
        .collect(engine="streaming")
        for curated in (after, before)
    ]
    rows = rows.join(told[0], on="row_id", how="left").join(told[1], on="row_id", how="left", suffix="_before")
    return rows.with_columns(
        change=pl.lit("changed"), new_row_id=pl.col("row_id"), new_split=pl.col("split_after"),
        reason=pl.coalesce("reason", "reason_before", pl.lit(READ_OTHERWISE)),
    )  # fmt: skip


def _moved(found: Any) -> Any:
    import polars as pl

    rows = found.filter((pl.col("text") == pl.col("text_after")).fill_null(value=False))
    tied = pl.when(pl.col("cluster") != pl.col("cluster_after")).then(pl.lit(OTHER_CLUSTER))
    return rows.with_columns(
        change=pl.lit("moved"), new_row_id=pl.col("row_id"), new_split=pl.col("split_after"),
        reason=tied.otherwise(pl.lit(OTHER_SHARES)),
    )  # fmt: skip


def _reasons(rows: Any) -> tuple[ReasonCount, ...]:
    counted = rows.group_by("change", "reason").len().to_dicts()
    counted.sort(key=lambda row: (CHANGES.index(row["change"]), -row["len"], row["reason"]))
    return tuple(ReasonCount(change=row["change"], reason=row["reason"], rows=row["len"]) for row in counted)


def dropped_rows(curated: Artifact) -> Any:
    """Lines of the ledger that drop a row, lazily."""
    import polars as pl

    return pl.scan_parquet(curated.file(LEDGER)).filter(pl.col("action") == "dropped").select("row_id", "origin", "reason", "evidence", "excerpt")  # fmt: skip


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """A nested config by dotted path; lists stay whole."""
    if not isinstance(value, Mapping) or not value:
        return {path: value if isinstance(value, str) else json.dumps(value)}
    return {
        name: told for key, inner in value.items() for name, told in _flat(inner, f"{path}.{key}".lstrip(".")).items()
    }
