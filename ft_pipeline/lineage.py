"""From a model to the raw bytes, and from a row to every adapter that saw it: every ancestor can be re-hashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import IntegrityError, NotFoundError, UserError
from ft_pipeline.finetune.artifact import shards_seen
from ft_pipeline.serve.artifact import adapters_of_exports
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.manifest import Manifest, Ref
from ft_pipeline.workers.messages import Listener, ignore, progress

SPLITS = ("train", "validation", "holdout")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """An artifact whose every byte was read and is what its manifest says."""

    ref: Ref
    files: int
    size: int
    """Bytes."""
    ok: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """An artifact with its parents by role."""

    kind: str
    digest: str
    size: int
    """Bytes of all files."""
    files: Mapping[str, str]
    """Name -> sha256."""
    counts: Mapping[str, int]
    created_at: str
    parents: Mapping[str, Node]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """What a ledger says of a row: dropped or changed, where, why, with the evidence."""

    artifact: Ref
    action: str
    stage: str
    reason: str
    evidence: str
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Flagged:
    """What a filter found in a row. action: drop, change, or note when the row stays as it is."""

    artifact: Ref
    filter: str
    action: str
    reason: str
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a row is in shards, in tokens from the start of its window."""

    shards: Ref
    split: str
    shard: str
    window: int
    start: int
    tokens: int
    trained_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """An adapter that was trained on shards with the row, its registered versions and where they are served."""

    adapter: Ref
    recipe_keys: tuple[str, ...]
    trained: bool
    """False when only its validation loss was measured on the row."""
    versions: tuple[str, ...]
    """`tenant/name@3 (production)`."""
    pools: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTrace:
    """Everything that happened to one row."""

    row_id: str
    origins: tuple[str, ...]
    """`file:line`."""
    splits: tuple[tuple[Ref, str], ...]
    """Curated dataset -> train, validation or holdout."""
    ledger: tuple[Dropped, ...]
    flags: tuple[Flagged, ...]
    places: tuple[Place, ...]
    adapters: tuple[Sighting, ...]


def verify(store: Store, ref: Ref, *, listener: Listener = ignore) -> list[Checked]:
    """Re-hashes every byte from an artifact to the raw ones, ancestors first, nothing remembered from before.

    Raises IntegrityError naming the kind and file of the first broken artifact, or the link that does not hold.
    """
    chain = list(_ancestors(store, ref, seen=set()))
    total, done = sum(m.size_bytes for m in chain), 0

    def tell(size: int) -> None:
        nonlocal done
        done += size
        progress(listener, "verify", min(done, total), total=total, unit="byte")

    for manifest in chain:
        _rehash(store, manifest, tell)
    return [Checked(ref=m.ref, files=len(m.files), size=m.size_bytes) for m in chain]


def tree(store: Store, ref: Ref) -> Node:
    """The artifact and its ancestors; a shared one is the same object. Raises IntegrityError at a link that does not hold."""
    nodes: dict[str, Node] = {}
    for manifest in _ancestors(store, ref, seen=set()):
        nodes[manifest.digest] = Node(
            kind=manifest.kind,
            digest=manifest.digest,
            size=manifest.size_bytes,
            files={name: entry.sha256 for name, entry in manifest.files.items()},
            counts=dict(manifest.counts),
            created_at=manifest.created_at,
            parents={role: nodes[parent.digest] for role, parent in manifest.parents.items()},
        )
    return nodes[ref.digest]


def adapters_that_saw(store: Store, catalog: Catalog, row_id: str) -> RowTrace:
    """What became of a row (id or prefix): split or ledger entry, places in shards, adapters, versions, pools.

    Read from the manifests, not from the catalog's index: a takedown must not miss an adapter that was never indexed.
    Raises NotFoundError, and UserError when the prefix fits several rows.
    """
    curated, shards = list(store.all("curated_dataset")), list(store.all("packed_shards"))
    splits = [row for m in curated for row in _rows_of_splits(store, m, row_id)]
    ledger = [(i, d) for m in [*curated, *shards] for i, d in _ledger(store, m, row_id)]
    whole = _one_id(row_id, [*(r[0] for r in splits), *(i for i, _ in ledger)])
    flags = [flag for m in curated for flag in _flags(store, m, whole)]
    places = [place for m in shards for place in _places(store, m, whole)]
    origins = {origin for i, _, _, origin in splits if i == whole} | {d.origin for i, d in ledger if i == whole}
    return RowTrace(
        row_id=whole,
        origins=tuple(sorted(origins - {""})),
        splits=tuple((ref, split) for i, ref, split, _ in splits if i == whole),
        ledger=tuple(d for i, d in ledger if i == whole),
        flags=tuple(flags),
        places=tuple(places),
        adapters=tuple(_sightings(store, catalog, places)),
    )


def told(found: RowTrace) -> str:
    """A row's trace in lines for a person."""
    lines = [f"row {found.row_id}" + (f" from {', '.join(found.origins)}" if found.origins else "")]
    lines += [f"  {split} of curated_dataset {ref.digest[:12]}" for ref, split in found.splits]
    for entry in found.ledger:
        where = f"{entry.artifact.kind} {entry.artifact.digest[:12]}"
        lines.append(f"  {entry.action} in {where}: {entry.stage}, {entry.reason} {entry.evidence}".rstrip())
    lines += [line for flag in found.flags for line in _told_flag(flag, found.ledger)]
    lines += [
        f"  packed_shards {p.shards.digest[:12]}: {p.shard} window {p.window}, tokens {p.start}-{p.start + p.tokens},"
        f" {p.trained_tokens} trained on"
        for p in found.places
    ]
    lines += [line for sighting in found.adapters for line in _told_adapter(sighting)]
    if not any(s.trained for s in found.adapters):
        lines.append("  no adapter was trained on it")
    return "\n".join(lines)


def _ancestors(store: Store, ref: Ref, *, seen: set[str], child: str = "") -> Iterator[Manifest]:
    """Every manifest below a reference once, parents before children. Raises IntegrityError."""
    if ref.digest in seen:
        return
    try:
        manifest = store.recorded(ref)
    except (NotFoundError, IntegrityError) as error:
        named = f", recorded by {child}" if child else ""
        raise IntegrityError(
            f"{ref.kind} {ref.digest[:12]}{named}: {error.what}", why=error.why, cure=error.cure
        ) from None
    seen.add(ref.digest)
    for role, parent in sorted(manifest.parents.items()):
        yield from _ancestors(store, parent, seen=seen, child=f"{ref.kind} {ref.digest[:12]} as {role}")
    yield manifest


def _rehash(store: Store, manifest: Manifest, tell: Callable[[int], None]) -> None:
    for name, entry in manifest.files.items():
        found = store.bucket.size_and_sha256(store.location(manifest, name), tell)
        if found == (entry.size, entry.sha256):
            continue
        said = "is missing" if found is None else "is cut short" if found[0] < entry.size else "was changed"
        _refuse(store, manifest, f"file {name} {said}")
    if extra := store.unlisted(manifest):
        _refuse(store, manifest, f"file {extra} is not in the manifest")


def _refuse(store: Store, manifest: Manifest, said: str) -> None:
    raise IntegrityError(
        f"{manifest.kind} {manifest.digest[:12]}: {said}",
        why=f"It lies in {store.bucket.path(manifest.ref.path)}. Everything made from it stands on other bytes than recorded.",
        cure="restore the file from a backup, or delete the artifact's folder and run the recipe again",
    )


def _matching(store: Store, manifest: Manifest, *, name: str, row_id: str) -> list[dict[str, Any]]:
    """Rows of a Parquet file whose row_id starts so; none when the artifact has no such file."""
    import polars as pl

    if name not in manifest.files:
        return []
    path = store.fetch_file(manifest.ref, name)
    return pl.scan_parquet(path).filter(pl.col("row_id").str.starts_with(row_id)).collect().to_dicts()


def _rows_of_splits(store: Store, manifest: Manifest, row_id: str) -> Iterator[tuple[str, Ref, str, str]]:
    for split in SPLITS:
        for row in _matching(store, manifest, name=f"{split}.parquet", row_id=row_id):
            yield row["row_id"], manifest.ref, split, row.get("origin") or ""


def _ledger(store: Store, manifest: Manifest, row_id: str) -> Iterator[tuple[str, Dropped]]:
    for row in _matching(store, manifest, name="ledger.parquet", row_id=row_id):
        said = {name: str(row.get(name) or "") for name in ("action", "stage", "reason", "evidence", "origin")}
        yield row["row_id"], Dropped(artifact=manifest.ref, **said)


def _flags(store: Store, manifest: Manifest, row_id: str) -> Iterator[Flagged]:
    for row in _matching(store, manifest, name="flags.parquet", row_id=row_id):
        if row["row_id"] == row_id:
            yield Flagged(artifact=manifest.ref, **{n: row[n] for n in ("filter", "action", "reason", "evidence")})


def _places(store: Store, manifest: Manifest, row_id: str) -> Iterator[Place]:
    for row in _matching(store, manifest, name="rows.parquet", row_id=row_id):
        if row.pop("row_id") == row_id:
            numbers = {name: int(row[name]) for name in ("window", "start", "tokens", "trained_tokens")}
            yield Place(shards=manifest.ref, split=row["split"], shard=str(row["shard"]), **numbers)


def _one_id(row_id: str, found: Sequence[str]) -> str:
    if row_id in (ids := sorted(set(found))) or len(ids) == 1:
        return row_id if row_id in ids else ids[0]
    if not ids:
        raise NotFoundError(
            f"no row {row_id} in any curated dataset of this store, kept or dropped",
            cure="row ids are in the row_id column of train.parquet and ledger.parquet",
        )
    raise UserError(f"{row_id} fits {len(ids)} rows: {', '.join(ids[:5])}", cure="give more digits")


def _sightings(store: Store, catalog: Catalog, places: Sequence[Place]) -> Iterator[Sighting]:
    trained = {p.shards.digest for p in places if p.split == "train" and p.trained_tokens > 0}
    seen, made_of = {p.shards.digest for p in places}, adapters_of_exports(store)
    models, heads = catalog.models(), {key: catalog.heads(key) for key in catalog.recipe_keys()}
    adapters = {manifest.digest: manifest for manifest in store.all("adapter")}
    for manifest in adapters.values():
        if not (shards := shards_seen(manifest, adapters)) & seen:
            continue
        versions = [v for v in models if made_of.get(v.adapter_digest, v.adapter_digest) == manifest.digest]
        yield Sighting(
            adapter=manifest.ref,
            recipe_keys=tuple(key for key, made in heads.items() if manifest.ref in made.values()),
            trained=bool(shards & trained),
            versions=tuple(f"{v.label} ({v.stage})" for v in versions),
            pools=tuple(sorted({pool for v in versions for pool in catalog.pools_of(v.id)})),
        )


def _told_flag(flag: Flagged, ledger: Sequence[Dropped]) -> Iterator[str]:
    """A line, unless the ledger says the same."""
    known = ((line.artifact, line.stage, line.evidence) for line in ledger)
    if (flag.artifact, flag.filter, flag.evidence) not in known:
        yield f"  flagged in {flag.artifact.kind} {flag.artifact.digest[:12]}: {flag.filter}, {flag.reason} ({flag.action}) {flag.evidence}"


def _told_adapter(sighting: Sighting) -> Iterator[str]:
    how = "trained on it" if sighting.trained else "measured its validation loss on it"
    yield f"  adapter {sighting.adapter.digest[:12]} {how}" + "".join(f", newest of {k}" for k in sighting.recipe_keys)
    for version in sighting.versions:
        yield f"    registered as {version}"
    if sighting.pools:
        yield f"    deployed in {', '.join(sighting.pools)}"
