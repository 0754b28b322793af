"""Which split a cluster of near-equal rows belongs to, and whether any cluster is in two."""

from __future__ import annotations

from ft_pipeline.curate.artifact import SPLITS
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
    import polars as pl

    parts = [
        pl.scan_parquet(curated.file(f"{split}.parquet")).select("cluster", split=pl.lit(split)) for split in SPLITS
    ]
    found = (
        pl.concat(parts).unique().group_by("cluster").agg(pl.col("split").sort()).filter(pl.col("split").list.len() > 1)
    )
    return dict(found.collect().sort("cluster").iter_rows())
