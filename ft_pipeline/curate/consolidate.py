"""curated_dataset: the only place where rows are dropped. Every row that comes in is in a split or in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ft_pipeline.acquire.artifact import control_tokens, raw_files
from ft_pipeline.curate.artifact import (
    CURATED_KIND,
    EDGE_COLUMNS,
    EDGES,
    LEDGER,
    LEDGER_COLUMNS,
    ROW_COLUMNS,
    SPLITS,
    STATISTICS,
    Reason,
)
from ft_pipeline.curate.deduplicate import Duplicates, find_duplicates
from ft_pipeline.curate.examine import Examined, examine
from ft_pipeline.curate.ledger import Entry, Fit, Kept, duplicate_entry
from ft_pipeline.curate.read import raw_rows
from ft_pipeline.curate.splits import split_of
from ft_pipeline.curate.statistics import statistics
from ft_pipeline.curate.table import write_table
from ft_pipeline.curate.validate import ControlTokens
from ft_pipeline.errors import DataError, RecipeError
from ft_pipeline.recipe import Curate, Recipe, identity
from ft_pipeline.store.artifacts import Artifact, Draft, Store
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json, code_digest
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.messages import Listener, ignore, log, progress

HERE = Path(__file__).parent
SOURCES = tuple(
    HERE / f"{name}.py"
    for name in (
        "artifact", "comparison", "consolidate", "deduplicate", "examine", "json_rows", "ledger", "normalize", "overlap", "read", "signatures",
        "splits", "statistics", "table", "turns", "unpack", "validate",
    )
)  # fmt: skip
"""The files that decide which rows come out: their digest is the code version."""
MIN_THRESHOLD = 0.5
NUM_EXAMPLES = 3


def code_version() -> str:
    """Digest of everything that decides what comes out."""
    return code_digest(*SOURCES)


def curate(
    config: Curate, *, store: Store, raw: Ref, base: Ref | None, layout: str = "auto", listener: Listener = ignore
) -> Artifact:
    """The curated dataset of a raw one. Of the base model only the control tokens matter, and only they are hashed.

    Raises DataError when too many rows are rejected or none is left, RecipeError for a threshold out of range.
    """
    if not MIN_THRESHOLD <= config.near_duplicates.threshold <= 1:
        raise RecipeError(
            f"curate.near_duplicates.threshold {config.near_duplicates.threshold} is not in [{MIN_THRESHOLD}, 1]",
            cure="0.9 drops rows that differ in a few words",
        )
    tokens = control_tokens(store, base) if base else ()
    spec = _spec(config, layout, tokens, raw=raw)
    if found := store.find(spec):
        log(listener, f"curated rows unchanged: {found.ref.digest[:12]} is reused")
        return found
    examined = _examined(store.fetch(raw), config, layout=layout, tokens=tokens, listener=listener)
    _refuse_if_bad(examined, config)
    near = config.near_duplicates
    rows = [row.comparable for row in examined.fit]
    duplicates = find_duplicates(rows, near.policy, near.threshold, listener=listener)
    _warn(duplicates, near.policy, listener)
    return _publish(store, spec, examined, duplicates=duplicates, config=config)


def curated_spec(recipe: Recipe, *, raw: Ref, base: Ref, store: Store) -> Spec:
    """What a run of the recipe would look for in the store before it computes anything."""
    return _spec(recipe.curate, recipe.dataset.layout, control_tokens(store, base), raw=raw)


def _spec(config: Curate, layout: str, tokens: Sequence[str], *, raw: Ref) -> Spec:
    return Spec(
        kind=CURATED_KIND,
        config={**identity(config), "layout": layout, "tokenizer_control_tokens": list(tokens)},
        parents={"raw": raw},
        code=code_version(),
    )


def _examined(raw: Artifact, config: Curate, *, layout: str, tokens: tuple[str, ...], listener: Listener) -> Examined:
    files = raw_files(raw)
    total = sum(path.stat().st_size for path in files.values())
    done = 0

    def seen(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(listener, "curate: read rows", min(done, total), total=total, unit="B")

    return examine(
        raw_rows(files, seen),
        layout=layout,
        control=ControlTokens(tokens),
        break_tokens=config.control_tokens == "escape",
    )


def _refuse_if_bad(examined: Examined, config: Curate) -> None:
    dropped = [e for e in examined.ledger if e.action == "dropped"]
    reasons: dict[str, int] = {}
    for entry in dropped:
        reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    counted = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1]))
    examples = "\n".join(f"  {e.origin}: {e.reason} {e.evidence}" for e in dropped[:NUM_EXAMPLES])
    if not examined.rows_in:
        raise DataError("the dataset holds no rows", cure="check the program that writes it")
    if len(dropped) <= config.max_rejected_share * examined.rows_in and examined.fit:
        return
    share = len(dropped) / examined.rows_in
    raise DataError(
        f"{len(dropped):,} of {examined.rows_in:,} rows ({share:.0%}) were rejected: {counted}\n{examples}",
        why=f"At most {config.max_rejected_share:.0%} may be (curate.max_rejected_share): more says that the dataset is another than you think.",
        cure=_cure(max(reasons, key=lambda r: reasons[r])),
    )


def _cure(reason: str) -> str:
    cures = {
        Reason.CONTROL_TOKEN: "set curate.control_tokens: escape, or remove these tokens from the text",
        Reason.UNKNOWN_LAYOUT: "rename the columns to messages, conversations, instruction/output, prompt/completion, "
        "prompt/chosen/rejected or text",
        Reason.NOT_JSON: "save one JSON object a line",
    }
    return cures.get(Reason(reason), "mend the rows, or raise curate.max_rejected_share if you know them to be bad")


def _warn(duplicates: Duplicates, policy: str, listener: Listener) -> None:
    if policy == "whole_example" and duplicates.answers_lost:
        log(
            listener,
            f"policy whole_example drops {duplicates.answers_lost:,} of {len(duplicates.near):,} near duplicates although their "
            "answer differs from the one that stays; prompt_and_response keeps them",
        )


def _publish(store: Store, spec: Spec, examined: Examined, *, duplicates: Duplicates, config: Curate) -> Artifact:
    kept = _kept(examined.fit, duplicates, config)
    if not any(row.split == "train" for row in kept):
        raise DataError(
            f"none of {len(kept):,} kept rows is in the train split",
            why="All of them are variants of each other and fell into one split together.",
            cure="bring more varied rows, or lower curate.splits",
        )
    ledger = [*examined.ledger, *_duplicate_entries(examined.fit, duplicates)]
    with store.publish(spec) as draft:
        _write(draft, kept, ledger, duplicates=duplicates, examined=examined)
    if draft.artifact is None:
        raise RuntimeError("published without an artifact")
    return draft.artifact


def _kept(fit: Sequence[Fit], duplicates: Duplicates, config: Curate) -> list[Kept]:
    """Rows that no other row stands for, in the order they came."""
    return [
        Kept(
            row_id=row.row_id,
            shape=row.shape,
            content=row.content,
            cluster=duplicates.clusters[index],
            origin=row.origin,
            split=split_of(duplicates.clusters[index], config.splits),
            num_characters=len(row.comparable.whole),
        )
        for index, row in enumerate(fit)
        if index not in duplicates.exact and index not in duplicates.near
    ]


def _duplicate_entries(fit: Sequence[Fit], duplicates: Duplicates) -> list[Entry]:
    exact = [
        duplicate_entry(fit[i], Reason.EXACT_DUPLICATE, kept_id=fit[k].row_id, kept_origin=fit[k].origin)
        for i, k in sorted(duplicates.exact.items())
    ]
    near = [
        duplicate_entry(
            fit[i], Reason.NEAR_DUPLICATE, kept_id=fit[k].row_id, kept_origin=fit[k].origin, edge=asdict(edge)
        )
        for i, (k, edge) in sorted(duplicates.near.items())
    ]
    return [*exact, *near]


def _write(
    draft: Draft, kept: Sequence[Kept], ledger: Sequence[Entry], *, duplicates: Duplicates, examined: Examined
) -> None:
    counts = {"rows_in": examined.rows_in, "rows_kept": len(kept), "rows_dropped": examined.rows_in - len(kept)}
    for split in SPLITS:
        part = [row for row in kept if row.split == split]
        counts[split] = len(part)
        _table(draft, f"{split}.parquet", part, columns=ROW_COLUMNS)
    _table(draft, LEDGER, ledger, columns=LEDGER_COLUMNS)
    _table(draft, EDGES, duplicates.edges, columns=EDGE_COLUMNS)
    numbers = statistics(kept, ledger, duplicates, rows_in=examined.rows_in, layouts=examined.layouts)
    write_atomic(draft.folder / STATISTICS, canonical_json(numbers) + b"\n")
    draft.counts.update(counts)


def _table(draft: Draft, name: str, rows: Sequence[Any], *, columns: Sequence[str]) -> None:
    draft.logical[name] = write_table(draft.folder / name, rows, columns)
