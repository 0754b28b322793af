"""raw_dataset: the bytes of a dataset as they are at the source, named by what they are and never by where they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ft_pipeline.acquire import hub
from ft_pipeline.acquire.artifact import FILES, RAW_KIND, SOURCE, SOURCES, holds_rows, source_of
from ft_pipeline.acquire.judged import SCHEME, in_store
from ft_pipeline.acquire.places import Desk, File, content_digest, listing, place_name
from ft_pipeline.acquire.uploaded import uploaded_file, verify
from ft_pipeline.errors import DataError, UserError
from ft_pipeline.recipe import DATASET, Dataset, Recipe, Source
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.blobs import digest_of, is_blob
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.messages import Listener, ignore, log

FORMATS = "row files (.jsonl, .ndjson, .json, also .gz or .zst; .parquet)"
CODE = "raw_dataset/1"
"""A number, not a digest of this file: the bytes are the source's, and pinned content must be found by later versions. Count it
up when `source.json` changes."""
MIX_CODE = "raw_mix/1"
"""The same for `sources.json`."""
HUB_METADATA = ("dataset_infos.json", "dataset_info.json", "state.json", "config.json")
"""JSON files of dataset repositories that hold no rows."""


def acquire_all(recipe: Recipe, *, settings: Settings, store: Store, listener: Listener = ignore) -> Artifact:
    """The `raw_dataset` of a recipe: the dataset's own, or with a mix one that has every source as a parent by its name.

    A mix holds no rows, only names and digests: each source is stored once, whoever mixes it. Raises as `acquire`.
    """
    own = acquire(recipe.dataset, settings=settings, store=store, listener=listener)
    if not recipe.mix:
        return own
    parents = {DATASET: own.ref}
    for source in recipe.mix:
        parents[source.name] = acquire(source, settings=settings, store=store, listener=listener).ref
    spec = Spec(kind=RAW_KIND, config={"sources": list(parents)}, parents=parents, code=MIX_CODE)
    return store.find(spec) or _publish_mix(store, spec)


def acquire(source: Dataset | Source, *, settings: Settings, store: Store, listener: Listener = ignore) -> Artifact:
    """The `raw_dataset` artifact of a source; nothing is copied when its content is in the store already.

    Identity: commit and path on the Hub, else names and sha256 of the files; the licence, because it is handed on.
    Raises NotFoundError, DataError (empty, no rows, not the pinned revision), StorageError (no answer).
    """
    desk = Desk(settings, listener, f"acquire {source.name}" if isinstance(source, Source) else "acquire raw rows")
    if source.uri.startswith(SCHEME):
        made = in_store(store, source.uri)
        if source.revision not in (None, content := source_of(made)["revision"]):
            raise _wrong_revision(source, content)
        return made
    if source.uri.startswith(hub.SCHEME):
        return _from_hub(source, desk, store)
    if is_blob(source.uri):
        return _from_upload(source, desk, store)
    if source.revision and (pinned := store.find(_spec({"content": source.revision}, source))):
        return pinned
    files = listing(source.uri, settings, wanted=holds_rows, what=FORMATS)
    content = content_digest(desk.hashed(files))
    if source.revision not in (None, content):
        raise _wrong_revision(source, content)
    spec = _spec({"content": content}, source)
    if found := store.find(spec):
        log(listener, f"raw rows unchanged: {found.ref.digest[:12]} is reused")
        return found
    return _publish(store, spec, desk, files=files, location=place_name(source.uri))


def _from_hub(source: Dataset | Source, desk: Desk, store: Store) -> Artifact:
    name = hub.parse(source.uri)
    commit = hub.commit_of(name, "dataset", revision=source.revision, settings=desk.settings)
    spec = _spec({"repo": name.repo, "revision": commit, "path": name.path}, source)
    if found := store.find(spec):
        log(desk.listener, f"{name.repo}@{commit[:12]} is in the store: reused")
        return found
    files = [
        f
        for f in hub.files_at(name, "dataset", commit=commit, settings=desk.settings)
        if holds_rows(f.name) and f.name.rsplit("/", 1)[-1] not in HUB_METADATA
    ]
    if not files:
        raise DataError(f"{source.uri} holds no {FORMATS}", cure="name a repository or path that holds rows")
    return _publish(store, spec, desk, files=files, location=source.uri)


def _from_upload(source: Dataset | Source, desk: Desk, store: Store) -> Artifact:
    """Its revision is the digest in its address; once acquired, the blob is not needed any more."""
    digest = digest_of(source.uri)
    if source.revision not in (None, digest):
        raise _wrong_revision(source, digest)
    spec = _spec({"content": digest}, source)
    if found := store.find(spec):
        return found
    file = uploaded_file(source.uri, store, endpoint=desk.settings.s3_endpoint)
    return _publish(store, spec, desk, files=[file], location=source.uri, check=lambda: verify(source.uri, file, desk))


def _spec(identity: dict[str, Any], source: Dataset | Source) -> Spec:
    config = {**identity, "licence": source.licence}
    return Spec(kind=RAW_KIND, config=config, parents={}, code=CODE)


def _publish(
    store: Store, spec: Spec, desk: Desk, *, files: Sequence[File], location: str, check: Callable[[], None] | None = None
) -> Artifact:  # fmt: skip
    """`check` looks at the copies before they count."""
    with store.publish(spec) as draft:
        folder = draft.folder / FILES.rstrip("/")
        desk.copy(files, folder)
        if check:
            check()
        sizes = {f.name: (folder / f.name).stat().st_size for f in files}
        write_atomic(draft.folder / SOURCE, canonical_json(_source(spec, desk.digests, sizes)) + b"\n")
        draft.counts.update(files=len(files), bytes=sum(sizes.values()))
        draft.execution["location"] = location
    desk.tidy(files)
    if draft.artifact is None:
        raise RuntimeError("published without an artifact")
    return draft.artifact


def _publish_mix(store: Store, spec: Spec) -> Artifact:
    with store.publish(spec) as draft:
        listed = [_listed(name, spec.parents[name]) for name in spec.config["sources"]]
        write_atomic(draft.folder / SOURCES, canonical_json({"sources": listed}) + b"\n")
        counts = [store.recorded(ref).counts for ref in spec.parents.values()]
        draft.counts.update({name: sum(c[name] for c in counts) for name in ("files", "bytes")}, sources=len(counts))
    if draft.artifact is None:
        raise RuntimeError("published without an artifact")
    return draft.artifact


def _listed(name: str, ref: Ref) -> dict[str, str]:
    return {"name": name, "digest": ref.digest, "fingerprint": ref.fingerprint}


def _source(spec: Spec, digests: dict[str, str], sizes: dict[str, int]) -> dict[str, Any]:
    """Only what follows from the identity: where a file lay is an execution fact, or two machines would differ."""
    config = spec.config
    revision = config.get("content") or config["revision"]
    within = f"/{config['path']}" if config.get("path") else ""
    return {
        "uri": f"hf://datasets/{config['repo']}@{revision}{within}" if "repo" in config else f"sha256:{revision}",
        "revision": revision,
        "licence": config["licence"],
        "files": [{"name": n, "sha256": digests[n], "bytes": sizes[n]} for n in sorted(sizes)],
    }


def _wrong_revision(source: Dataset | Source, content: str) -> UserError:
    return UserError(
        f"{source.uri} has content {content}, the recipe pins revision {source.revision}",
        why="A pinned dataset may not change: adapters would be compared that were trained on different rows.",
        cure="bring the pinned files back, or write the new revision into the recipe",
    )
