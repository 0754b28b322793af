"""base_model: a Hugging Face snapshot, whole and pinned: safetensors weights, tokenizer, template, config, each with a digest."""

from __future__ import annotations

from collections.abc import Sequence

from ft_pipeline.acquire import hub
from ft_pipeline.acquire.artifact import BASE_KIND, DIGESTS
from ft_pipeline.acquire.places import Desk, File, content_digest, listing, place_name
from ft_pipeline.acquire.snapshot import check_names, check_weights, class_digests, class_of, wanted
from ft_pipeline.errors import DriftError, NotFoundError
from ft_pipeline.recipe import BaseModel
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.messages import Listener, ignore, log

CODE = "base_model/1"
"""A number, not a digest of this file: a pinned base must be found by later versions. Count it up when `digests.json` changes."""


def acquire(
    source: BaseModel, *, settings: Settings, store: Store, revision: str | None = None, listener: Listener = ignore
) -> Artifact:
    """The `base_model` artifact of a revision (default: what is at the source now).

    A pinned revision that is in the store is found there even when the source has moved on or is gone. Raises NotFoundError,
    DataError (no whole safetensors snapshot), DriftError (the source holds another content and the pinned one is nowhere).
    """
    wanted_revision = revision or source.revision
    if wanted_revision and (found := store.find(_spec(source, wanted_revision))):
        log(listener, f"base model {wanted_revision[:12]} is in the store: reused")
        return found
    desk = Desk(settings, listener, "acquire base model")
    commit, files = _files(source, desk, wanted_revision)
    if wanted_revision and wanted_revision != commit and not source.uri.startswith(hub.SCHEME):
        raise _moved(source, wanted_revision, commit)
    spec = _spec(source, commit)
    return store.find(spec) or _publish(store, spec, desk, files=files, location=place_name(source.uri))


def resolve_revision(source: BaseModel, *, settings: Settings, listener: Listener = ignore) -> str:
    """What is at the source now: the commit of the Hub's branch, or the content digest of a folder or bucket."""
    if source.uri.startswith(hub.SCHEME):
        return hub.commit_of(hub.parse(source.uri), "model", revision=source.revision, settings=settings)
    return _files(source, Desk(settings, listener, "resolve base model"), None)[0]


def pinned_revision(
    key: str, source: BaseModel, *, settings: Settings, catalog: Catalog, listener: Listener = ignore
) -> str:
    """The revision that a model line trains on: the recipe's, else the one written down, else today's, now written down."""
    if source.revision and (not source.uri.startswith(hub.SCHEME) or hub.COMMIT.fullmatch(source.revision)):
        return source.revision
    pinned = catalog.pinned(key, source.uri)
    if pinned is None:
        pinned = resolve_revision(source, settings=settings, listener=listener)
        catalog.pin(key, source.uri, pinned)
        log(listener, f"{key}: base {source.uri} pinned at {pinned[:12]}")
    return pinned


def _files(source: BaseModel, desk: Desk, revision: str | None) -> tuple[str, Sequence[File]]:
    """The commit or content digest and the files of it, checked by name."""
    if source.uri.startswith(hub.SCHEME):
        name = hub.parse(source.uri)
        commit = hub.commit_of(name, "model", revision=revision, settings=desk.settings)
        files: Sequence[File] = hub.files_at(name, "model", commit=commit, settings=desk.settings)
        return commit, _snapshot(files, source.uri)
    try:
        found = listing(
            source.uri, desk.settings, wanted=wanted, what="model snapshot (config.json, *.safetensors ...)"
        )
    except NotFoundError as error:
        raise _missing(source, error) from None
    kept = _snapshot(found, source.uri)
    return content_digest(desk.hashed(kept)), kept


def _snapshot(files: Sequence[File], uri: str) -> list[File]:
    check_names([f.name for f in files], uri)
    return [f for f in files if class_of(f.name)]


def _spec(source: BaseModel, revision: str) -> Spec:
    if source.uri.startswith(hub.SCHEME):
        return Spec(
            kind=BASE_KIND, config={"repo": hub.parse(source.uri).repo, "revision": revision}, parents={}, code=CODE
        )
    return Spec(kind=BASE_KIND, config={"content": revision}, parents={}, code=CODE)


def _publish(store: Store, spec: Spec, desk: Desk, *, files: Sequence[File], location: str) -> Artifact:
    with store.publish(spec) as draft:
        desk.copy(files, draft.folder)
        check_weights(draft.folder)
        digests = class_digests(draft.folder, {f.name: desk.digests[f.name] for f in files})
        write_atomic(draft.folder / DIGESTS, canonical_json(digests) + b"\n")
        sizes = [(draft.folder / f.name).stat().st_size for f in files]
        draft.counts.update(files=len(files), bytes=sum(sizes))
        draft.execution["location"] = location
    desk.tidy(files)
    if draft.artifact is None:
        raise RuntimeError("published without an artifact")
    return draft.artifact


def _missing(source: BaseModel, error: NotFoundError) -> NotFoundError:
    tiny = source.uri == "home://bases/tiny-docs"
    return NotFoundError(
        f"no base model at {source.uri}: {error.what}",
        why="Nothing can be trained, and no holdout compared, without the weights that the adapter sits on.",
        cure="run `ft-pipeline base build-tiny`: it trains the demo's base model in about a minute"
        if tiny
        else error.cure,
    )


def _moved(source: BaseModel, pinned: str, now: str) -> DriftError:
    return DriftError(
        f"{source.uri} holds {now[:12]}, this model line is pinned to {pinned[:12]}, which is not in the store",
        why="An adapter fits only the base it was trained on.",
        cure="bring the pinned files back, or write the new revision into the recipe (`ft-pipeline pin RECIPE` shows it)",
    )
