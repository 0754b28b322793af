"""benchmark_mirror: a dataset's repository as it is at one commit, whole, so that benchmarks can be built where there is no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from ft_pipeline.acquire import hub
from ft_pipeline.acquire.places import Desk, File, content_digest, listing, place_name
from ft_pipeline.errors import DataError
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.messages import Listener, ignore, log

KIND = "benchmark_mirror"
CODE = "benchmark_mirror/1"
"""A number, not a digest of this file: the bytes are the source's."""
ROWS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow")
WANTED = (*ROWS, ".md", ".yaml", ".gz", ".zst", ".txt")
"""Rows, and the README.md whose head says which file is which split. No scripts: nothing of a mirror is ever run."""


def fetch(
    repo: str,
    *,
    settings: Settings,
    store: Store,
    source: str = "",
    revision: str | None = None,
    listener: Listener = ignore,
) -> Artifact:
    """The mirror of `owner/name`, from the Hub or from a copy of the repository in a folder or bucket.

    Raises NotFoundError, DataError (no rows), StorageError (no answer), UserError (gated).
    """  # fmt: skip
    desk = Desk(settings, listener, f"mirror {repo}")
    uri = source or f"{hub.SCHEME}datasets/{repo}"
    identity, files = _files(uri, desk, revision)
    spec = Spec(kind=KIND, config={"repo": repo, **identity}, parents={}, code=CODE)
    if found := store.find(spec):
        log(listener, f"{repo} is mirrored: {found.ref.digest[:12]} is reused")
        return found
    if not any(f.name.removesuffix(".gz").removesuffix(".zst").endswith(ROWS) for f in files):
        raise DataError(f"{uri} holds no rows", cure="point at a copy of the dataset's repository")
    with store.publish(spec) as draft:
        desk.copy(files, draft.folder / "files")
        draft.counts.update(files=len(files), bytes=sum(f.size or 0 for f in files))
        draft.execution["location"] = place_name(uri)
    desk.tidy(files)
    assert draft.artifact is not None
    return draft.artifact


def _files(uri: str, desk: Desk, revision: str | None) -> tuple[dict[str, Any], Sequence[File]]:
    if uri.startswith(hub.SCHEME):
        name = hub.parse(uri)
        commit = hub.commit_of(name, "dataset", revision=revision, settings=desk.settings)
        found = hub.files_at(name, "dataset", commit=commit, settings=desk.settings)
        return {"revision": commit}, [f for f in found if _wanted(f.name)]
    files = listing(uri, desk.settings, wanted=_wanted, what="dataset files")
    return {"content": content_digest(desk.hashed(files))}, files


def _wanted(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in WANTED
