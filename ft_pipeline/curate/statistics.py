"""Numbers about a curated dataset: what came in, what was dropped and why, how long the rows are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ft_pipeline.curate.artifact import SPLITS
from ft_pipeline.curate.deduplicate import Duplicates
from ft_pipeline.curate.edges import CONFLICT, DUPLICATE, VARIANT
from ft_pipeline.curate.fate import HOLDOUT, NOT_DRAWN, TRAIN, Fates

MIN_EXPONENT = 4
MAX_EXPONENT = 20


@dataclass
class Tally:
    """Counted while the files are written."""

    rows_in: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    """By filter and reason: `pii: personal_data (note)`."""
    shapes: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    """Source -> what became of its rows."""

    findings: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Row id and evidence of every benchmark item found."""
    trained: set[str] = field(default_factory=set)
    """Those of these rows that are in the train split."""

    def add_ledger(self, columns: Mapping[str, Sequence[str]]) -> None:
        """Counts lines of the ledger."""
        for action, reason in zip(columns["action"], columns["reason"], strict=True):
            (self.dropped if action == "dropped" else self.changed)[reason] += 1

    def add_flags(self, columns: Mapping[str, Sequence[str]]) -> None:
        """Counts flags, and keeps what is found of benchmarks."""
        told = zip(columns["filter"], columns["reason"], columns["action"], strict=True)
        self.flags.update(f"{name}: {reason} ({action})" for name, reason, action in told)
        found = zip(columns["row_id"], columns["filter"], columns["evidence"], strict=True)
        self.findings += [(row_id, json.loads(evidence)) for row_id, name, evidence in found if name == "contamination"]

    def add_source(self, name: str, fate: np.ndarray, rows_in: int) -> None:
        """Counts what became of rows of a source."""
        counted = self.sources.setdefault(name, Counter())
        counted["rows_in"] += rows_in
        counted["kept"] += int((fate <= HOLDOUT).sum())
        counted["train"] += int((fate == TRAIN).sum())
        counted["not_drawn"] += int((fate == NOT_DRAWN).sum())


def statistics(
    tally: Tally, fates: Fates, duplicates: Duplicates, *, lengths: np.ndarray, safety: Sequence[str]
) -> dict[str, Any]:
    """The content of `statistics.json`: everything follows from rows and recipe."""
    kept = fates.fate <= HOLDOUT
    sizes = np.unique(duplicates.cluster[kept], return_counts=True)[1]
    relations = Counter(duplicates.edges.relation.tolist())
    train = sum(counted["train"] for counted in tally.sources.values())
    safe = sum(counted["train"] for name, counted in tally.sources.items() if name in safety)
    return {
        "rows_in": tally.rows_in,
        "rows_kept": int(kept.sum()),
        "dropped_by_reason": dict(sorted(tally.dropped.items())),
        "changed_by_reason": dict(sorted(tally.changed.items())),
        "flags": dict(sorted(tally.flags.items())),
        "layouts": dict(sorted(tally.layouts.items())),
        "shapes": dict(sorted(tally.shapes.items())),
        "sources": {name: dict(counted) for name, counted in sorted(tally.sources.items())},
        "safety_share": round(safe / train, 6) if train else 0.0,
        "splits": {split: int((fates.fate == number).sum()) for number, split in enumerate(SPLITS)},
        "length_histogram": length_histogram(lengths[kept]),
        "clusters": {"count": len(sizes), "largest": int(sizes.max(initial=0)), "sizes": cluster_sizes(sizes)},
        "near_duplicate_edges": relations[DUPLICATE],
        "variant_edges": relations[VARIANT],
        "answers_lost": duplicates.answers_lost,
        "conflicts": {"prompts": duplicates.conflict_prompts, "pairs": relations[CONFLICT]},
    }


def length_histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Rows by characters of prompt and response, in buckets that double: [{"up_to", "rows"}], from the first used to the last."""
    if not len(lengths):
        return []
    exponents = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int).clip(MIN_EXPONENT, MAX_EXPONENT)
    low, counts = exponents.min(), np.bincount(exponents - exponents.min())
    return [{"up_to": 2 ** int(low + place), "rows": int(count)} for place, count in enumerate(counts)]


def cluster_sizes(sizes: np.ndarray) -> dict[str, int]:
    """How many clusters have so many rows."""
    bounds = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 100), (101, None))
    found = {}
    for low, high in bounds:
        name = f"{low}" if low == high else f"{low}+" if high is None else f"{low}-{high}"
        found[name] = int(((sizes >= low) & (sizes <= (high or sizes.max(initial=0)))).sum())
    return found
