"""What a curation reads besides rows: benchmark files (made into indexes once) and a word list, from wherever the recipe says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft_pipeline.curate.benchmark_index import index_of, index_spec
from ft_pipeline.errors import NotFoundError
from ft_pipeline.recipe import Curate
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store, open_store
from ft_pipeline.store.blobs import Blobs, digest_of, is_blob
from ft_pipeline.store.fingerprint import sha256_bytes
from ft_pipeline.store.paths import resolve
from ft_pipeline.workers.messages import Listener, ignore


def opened(config: Curate, *, settings: Settings, store: Store, listener: Listener = ignore) -> dict[str, Any]:
    """`words` and `indexes` of a recipe: the list's local path, and the index artifact of each benchmark, made when it is not there.

    Raises NotFoundError for a place where nothing is, DataError for a benchmark that cannot be read.
    """
    indexes: dict[str, Artifact] = {}
    for benchmark in config.contamination.benchmarks:
        files = local_files(benchmark.uri, settings, field=f"curate.contamination.benchmarks {benchmark.name}")
        indexes[benchmark.name] = index_of(store, benchmark, files, listener=listener)
    return {"words": words_of(config, settings), "indexes": indexes}


def known(config: Curate, *, settings: Settings, store: Store) -> dict[str, Any] | None:
    """As `opened`, but nothing is made: None when an index is not in the store."""
    indexes: dict[str, Artifact] = {}
    for benchmark in config.contamination.benchmarks:
        files = local_files(benchmark.uri, settings, field=f"curate.contamination.benchmarks {benchmark.name}")
        found = store.find(index_spec(benchmark.name, files))
        if found is None:
            return None
        indexes[benchmark.name] = found
    return {"words": words_of(config, settings), "indexes": indexes}


def words_of(config: Curate, settings: Settings) -> Path | None:
    """Local path of the toxicity word list."""
    if config.toxicity.words is None:
        return None
    return next(iter(local_files(config.toxicity.words, settings, field="curate.toxicity.words").values()))


def local_files(uri: str, settings: Settings, *, field: str) -> Mapping[str, Path]:
    """Name -> local path of the file, or of all files in the folder, at a URI; a remote one is copied below `work` once."""
    where = resolve(uri, settings.home)
    if is_blob(uri):
        return _uploaded(uri, settings, field=field)
    if "://" in where:
        return _copied(where, settings, field=field)
    path = Path(where)
    if path.is_file():
        return {path.name: path}
    found = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()}
    if not found:
        raise _nothing(field, where)
    return found


def _uploaded(uri: str, settings: Settings, *, field: str) -> Mapping[str, Path]:
    """A file that a tenant brought, below `work` under a name that says how to read it."""
    digest = digest_of(uri)
    try:
        with Blobs(open_store(settings)).local(digest) as path:
            with path.open("rb") as file:
                head = file.read(64).lstrip()
            name = "rows.parquet" if head[:4] == b"PAR1" else "rows.json" if head[:1] == b"[" else "rows.jsonl"
            target = settings.work / "references" / digest[:16] / name
            if not target.is_file() or target.stat().st_size != path.stat().st_size:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            return {name: target}
    except FileNotFoundError:
        raise _nothing(field, uri) from None


def _copied(uri: str, settings: Settings, *, field: str) -> Mapping[str, Path]:
    import fsspec

    options: Any = {"endpoint_url": settings.s3_endpoint} if uri.startswith("s3://") and settings.s3_endpoint else {}
    system, root = fsspec.url_to_fs(uri, **({"client_kwargs": options} if options else {}))
    try:
        names = [root] if system.isfile(root) else sorted(system.find(root))
    except FileNotFoundError:
        names = []
    if not names:
        raise _nothing(field, uri)
    folder = settings.work / "references" / sha256_bytes(uri.encode())[:16]
    found = {}
    for name in names:
        short = name.removeprefix(root).lstrip("/") or name.rsplit("/", 1)[-1]
        target = folder / short
        if not target.is_file() or target.stat().st_size != system.size(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(target))
        found[short] = target
    return found


def _nothing(field: str, where: str) -> NotFoundError:
    return NotFoundError(f"{field}: no file at {where}", cure="give a file, a folder, s3:// or hf:// that exists")
