"""Which split a cluster of near-equal rows belongs to, and whether any cluster is in two."""

from __future__ import annotations

from collections import defaultdict

from ft_pipeline.curate.artifact import SPLITS, rows_of
from ft_pipeline.recipe import Splits
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.fingerprint import sha256_bytes


def split_of(cluster: str, shares: Splits) -> str:
    """The split by hash of the cluster's name: rows added later move no row that was there, unless they tie two clusters."""
    place = int(sha256_bytes(f"split/{cluster}".encode())[:16], 16) / 2**64
    if place < shares.holdout:
        return "holdout"
    return "validation" if place < shares.holdout + shares.validation else "train"


def leaks(curated: Artifact) -> dict[str, list[str]]:
    """Cluster -> its splits, for every cluster that is in more than one; read from the stored files anew."""
    seen: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for row in rows_of(curated, split):
            seen[row["cluster"]].add(split)
    return {cluster: sorted(splits) for cluster, splits in seen.items() if len(splits) > 1}
