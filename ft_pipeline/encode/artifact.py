"""The noun of the room: `packed_shards`, windows of tokens with row boundaries, loss spans and row ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.recipe import Encode, identity
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Ref, Spec

if TYPE_CHECKING:
    import numpy as np

KIND = "packed_shards"
SPLITS = ("train", "validation")
STATISTICS = "statistics.json"
SAMPLE = "sample.json"
"""The first windows, decoded: a list of windows of rows {row_id, pieces: [[text, trained], ...]}."""
ROWS = "rows.parquet"
LEDGER = "ledger.parquet"
LEDGER_COLUMNS = ("row_id", "origin", "action", "stage", "reason", "evidence", "excerpt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One window: `ids` int32 of at most window_tokens; `spans` pairs (start, end) of trained tokens; rows back to back."""

    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    row_ids: tuple[str, ...]

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss counts. The first token of a row is never one: nothing predicts it."""
        return sum(end - start for start, end in self.spans)


def shards_spec(encode: Encode, *, curated: Ref, base_digests: dict[str, str]) -> Spec:
    """What the shards are made of: the rows, the section, and the tokenizer and template by content.

    The base model is no parent: new weights with the same tokenizer leave the windows as they are (gate.md, base SHA change).
    """
    here = Path(__file__).parent
    return Spec(
        kind=KIND,
        config={
            **identity(encode),
            "tokenizer": base_digests["tokenizer"],
            "chat_template": base_digests["chat_template"],
        },
        parents={"curated": curated},
        code=code_digest(here / "template.py", here / "pack.py", here / "shards.py", here / "main.py"),
    )


def base_digests(base: Artifact) -> dict[str, str]:
    """File class (weights, tokenizer, chat_template, config, docs) -> digest of a base model."""
    return json.loads(base.file("digests.json").read_text(encoding="utf-8"))


def statistics(shards: Artifact) -> dict[str, Any]:
    """What `statistics.json` says."""
    return json.loads(shards.file(STATISTICS).read_text(encoding="utf-8"))


def shard_names(shards: Artifact, split: str) -> list[str]:
    """The split's files in order; empty when the split has no rows."""
    return sorted(n for n in shards.manifest.files if n.startswith(f"{split}-") and n.endswith(".parquet"))


def read_windows(shards: Artifact, split: str) -> Iterator[Window]:
    """Every window of a split in order."""
    import pyarrow.parquet as pq

    for name in shard_names(shards, split):
        for group in pq.ParquetFile(shards.file(name)).iter_batches(batch_size=64):
            for row in group.to_pylist():
                yield _window(row)


def _window(row: dict[str, Any]) -> Window:
    import numpy as np

    edges = row["loss_spans"]
    return Window(
        ids=np.asarray(row["input_ids"], np.int32),
        spans=tuple(zip(edges[::2], edges[1::2], strict=True)),
        lengths=tuple(row["seq_lengths"]),
        row_ids=tuple(row["row_ids"]),
    )
