"""Which rows that were taken down are in a raw dataset: only those change what is made of it.

The keys of a raw dataset's rows are read once and kept below `work` (8 bytes a row); nothing is read before the first takedown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ft_pipeline.acquire.artifact import FILES, sources_of
from ft_pipeline.curate.blocks import blocks
from ft_pipeline.curate.read import rows_of_block
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import beside
from ft_pipeline.store.manifest import Ref


def forgotten_in(store: Store, raw: Ref, forgotten: Sequence[str]) -> tuple[str, ...]:
    """Of these row keys (`r` and 16 hex digits, or the digits alone) those that are in a raw dataset: 16 hex digits, sorted."""
    wanted = sorted({key.removeprefix("r") for key in forgotten})
    if not wanted:
        return ()
    known = set(_keys(store, raw).tolist())
    return tuple(key for key in wanted if int(key, 16) in known)


def _keys(store: Store, raw: Ref) -> np.ndarray:
    path = store.work / "curate-keys" / f"{raw.digest}.npy"
    if path.is_file():
        return np.load(path)
    found = []
    for source in sources_of(store, raw):
        sha256 = {name: source.artifact.manifest.files[FILES + name].sha256 for name in source.files}
        for block in blocks(source.name, source.files, _unseen, sha256=sha256):
            found += [int(row.key[:16], 16) for row in rows_of_block(block)]
    keys = np.unique(np.array(found, np.uint64))
    _keep(path, keys)
    return keys


def _keep(path: Path, keys: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    with partial.open("wb") as file:
        np.save(file, keys)
    partial.replace(path)


def _unseen(num_bytes: int) -> None:
    """Nobody watches how far it is."""
