"""Numbers about a curated dataset: what came in, what was dropped and why, how long the rows are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ft_pipeline.curate.artifact import SPLITS
from ft_pipeline.curate.deduplicate import Duplicates
from ft_pipeline.curate.ledger import Entry, Kept

MIN_EXPONENT = 4
MAX_EXPONENT = 20


def statistics(
    kept: Sequence[Kept], ledger: Sequence[Entry], duplicates: Duplicates, *, rows_in: int, layouts: Counter[str]
) -> dict[str, Any]:
    """The content of `statistics.json`: everything follows from rows and recipe."""
    clusters = Counter(row.cluster for row in kept)
    relations = Counter(edge.relation for edge in duplicates.edges)
    return {
        "rows_in": rows_in,
        "rows_kept": len(kept),
        "dropped_by_reason": _reasons(ledger, "dropped"),
        "changed_by_reason": _reasons(ledger, "changed"),
        "layouts": dict(sorted(layouts.items())),
        "shapes": dict(sorted(Counter(row.shape for row in kept).items())),
        "splits": {split: sum(row.split == split for row in kept) for split in SPLITS},
        "length_histogram": length_histogram(row.num_characters for row in kept),
        "clusters": {"count": len(clusters), "largest": max(clusters.values(), default=0)},
        "near_duplicate_edges": relations["duplicate"],
        "answers_lost": duplicates.answers_lost,
        "conflicts": {"prompts": duplicates.conflict_prompts, "pairs": relations["conflict"]},
    }


def length_histogram(lengths: Iterable[int]) -> list[dict[str, int]]:
    """Rows by characters of prompt and response, in buckets that double: [{"up_to", "rows"}], from the first used to the last."""
    counts = Counter(min(max((max(n, 1) - 1).bit_length(), MIN_EXPONENT), MAX_EXPONENT) for n in lengths)
    if not counts:
        return []
    return [{"up_to": 2**e, "rows": counts[e]} for e in range(min(counts), max(counts) + 1)]


def _reasons(ledger: Iterable[Entry], action: str) -> dict[str, int]:
    return dict(sorted(Counter(str(entry.reason) for entry in ledger if entry.action == action).items()))
