"""Removes folders of adapters that no replica names any more, on the disks that the reconciler sees.

vLLM keeps a bounded number of adapters in memory and reads an evicted one again from its folder when it is asked for: when the folder
is gone, the whole server exits (measured, vLLM 0.32). So a folder leaves only when every replica of the pools that share the disk
answered, none of them names it, the catalog lets nobody ask for it, and that has been so for longer than any request lasts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ft_pipeline.serve.fleet.desired import Wanted
from ft_pipeline.serve.fleet.report import PoolReport
from ft_pipeline.store.paths import adapter_folders

UNNAMED_SECONDS = 3600.0
"""A request that waits in vLLM still holds the path of its adapter after the name was unloaded; the gateway gives up after 600 s."""


def collect(
    pools: Sequence[PoolReport],
    wants: Sequence[Wanted],
    before: Mapping[str, float],
    *,
    asked_for: Callable[[str], bool],
) -> tuple[list[PoolReport], dict[str, float]]:
    """The reports with what was removed, and since when (Unix seconds) each remaining folder is named by nobody.

    `asked_for(digest)` is asked last of all: a rollback may have come while replicas were visited.
    """
    unnamed: dict[str, float] = {}
    removed: dict[str, list[str]] = {}
    for cache in sorted({want.pool.cache for want in wants if want.pool.cache}):
        sharing = [(pool, want) for pool, want in zip(pools, wants, strict=True) if want.pool.cache == cache]
        for digest, folder, since in _unnamed(Path(cache), sharing, before):
            if time.time() - since >= UNNAMED_SECONDS and not asked_for(digest):
                shutil.rmtree(folder)
                removed.setdefault(cache, []).append(digest)
            else:
                unnamed[str(folder)] = since
    return [
        replace(pool, removed=tuple(removed.get(want.pool.cache or "", ())))
        for pool, want in zip(pools, wants, strict=True)
    ], unnamed


def _unnamed(
    cache: Path, sharing: Sequence[tuple[PoolReport, Wanted]], before: Mapping[str, float]
) -> list[tuple[str, Path, float]]:
    """Digest, folder, since when. Nothing while a replica does not answer: it may name anything, and the time begins anew."""
    if any(not pool.replicas or any(r.state == "down" for r in pool.replicas) for pool, _ in sharing):
        return []
    named = {digest for pool, _ in sharing for replica in pool.replicas for digest in replica.adapters.values()}
    named |= {digest for _, want in sharing for digest in want.permitted.values()}
    folders = adapter_folders(cache).items()
    return [(digest, folder, before.get(str(folder), time.time())) for digest, folder in folders if digest not in named]
