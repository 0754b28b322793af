"""Whether a curated dataset accounts for every row: what came in is kept or dropped, counted anew from the stored files."""

from __future__ import annotations

from dataclasses import dataclass

from ft_pipeline.curate.artifact import LEDGER, SPLITS
from ft_pipeline.store.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """Rows by what became of them."""

    rows_in: int
    """Read from the raw files."""
    kept: int
    """In the files of the splits."""
    dropped: int
    """Lines of the ledger that drop a row."""
    twice: int
    """Rows that are in more than one of these places, or in one of them twice."""

    @property
    def adds_up(self) -> bool:
        """Nothing is lost, nothing counted twice."""
        return self.rows_in == self.kept + self.dropped and not self.twice


def balance(curated: Artifact) -> Balance:
    """The rows of the stored files, by id."""
    import polars as pl

    kept = pl.concat([pl.scan_parquet(curated.file(f"{split}.parquet")).select("row_id") for split in SPLITS])
    dropped = pl.scan_parquet(curated.file(LEDGER)).filter(pl.col("action") == "dropped").select("row_id")
    counted = [frame.select(pl.len()).collect(engine="streaming").item() for frame in (kept, dropped)]
    # by hash: 8 bytes a row in place of 40
    ids = pl.concat([kept, dropped]).select(pl.col("row_id").hash().n_unique()).collect(engine="streaming").item()
    return Balance(
        rows_in=curated.manifest.counts["rows_in"], kept=counted[0], dropped=counted[1], twice=sum(counted) - ids
    )
