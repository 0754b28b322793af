"""The index over the manifests (rebuildable), the newest artifact of every asset of a model line, and the pins."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import IntegrityError, NotFoundError, UserError
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.catalog_journal import written
from ft_pipeline.store.catalog_tables import artifacts, edges, heads, pins
from ft_pipeline.store.manifest import Manifest, Ref


class ArtifactIndex(Database):
    """Which artifacts there are, what was made of what, and which is the newest."""

    def set_head(self, recipe_key: str, asset: str, artifact: Artifact, *, run_id: str | None = None) -> None:
        """Records the newest artifact of an asset of a model line, and indexes its manifest."""
        ref = artifact.ref
        row = {"kind": ref.kind, "fingerprint": ref.fingerprint, "digest": ref.digest, "run_id": run_id}
        with self.write() as db:
            _index(db, artifact.manifest)
            _replace(db, heads, row | {"recipe_key": recipe_key, "asset": asset, "updated_at": now()})

    def head(self, recipe_key: str, asset: str) -> Ref:
        """The newest artifact of an asset of a model line. Raises NotFoundError."""
        known = self.heads(recipe_key)
        if asset in known:
            return known[asset]
        raise NotFoundError(
            f"{recipe_key} has no {asset} yet",
            why=f"It has: {', '.join(known)}." if known else f"Nothing of {recipe_key} was made in this catalog.",
            cure=f"materialize {asset} first: `ft-pipeline run {recipe_key}`",
        )

    def heads(self, recipe_key: str) -> dict[str, Ref]:
        """Asset -> its newest artifact."""
        query = sa.select(heads).where(heads.c.recipe_key == recipe_key).order_by(heads.c.asset)
        with self.read() as db:
            return {row.asset: _ref(row) for row in db.execute(query)}

    def index(self, manifest: Manifest) -> None:
        """Records an artifact and its parents; again changes nothing."""
        with self.write() as db:
            _index(db, manifest)

    def verify_index(self, manifests: Iterable[Manifest]) -> int:
        """Compares what the index says of artifacts with their manifests. Returns how many of them are indexed. Raises IntegrityError."""
        with self.snapshot() as db:
            return sum(_require_indexed(db, manifest) for manifest in manifests)

    def rebuild(self, store: Store) -> int:
        """Makes the index anew from the store's manifests. Returns their number."""
        found = list(store.all())
        with self.write() as db:
            db.execute(sa.delete(artifacts))
            for manifest in found:
                _index(db, manifest)
        return len(found)

    def ref(self, digest_or_prefix: str) -> Ref:
        """The artifact whose digest starts so. Raises NotFoundError, and UserError when several do."""
        query = sa.select(artifacts).where(artifacts.c.digest.startswith(digest_or_prefix, autoescape=True)).limit(3)
        with self.read() as db:
            rows = db.execute(query).all()
        if len(rows) == 1:
            return _ref(rows[0])
        if not rows or not digest_or_prefix:
            raise NotFoundError(
                f"no artifact {digest_or_prefix!r} in the catalog",
                cure="`ft-pipeline catalog rebuild` indexes the store again",
            )
        raise UserError(
            f"{digest_or_prefix!r} names several artifacts: {', '.join(f'{r.kind} {r.digest[:16]}' for r in rows)}",
            cure="give more digits",
        )

    def children(self, digest: str) -> list[Ref]:
        """The artifacts that were made directly of this one, by kind and digest."""
        made = sa.select(edges.c.child).where(edges.c.parent == digest)
        query = sa.select(artifacts).where(artifacts.c.digest.in_(made)).order_by(artifacts.c.kind, artifacts.c.digest)
        with self.read() as db:
            return [_ref(row) for row in db.execute(query)]

    def pin(self, recipe_key: str, uri: str, revision: str) -> None:
        """Writes down which revision a URI of a recipe stands for; the newest pin holds."""
        with self.write() as db:
            _replace(db, pins, {"recipe_key": recipe_key, "uri": uri, "revision": revision, "created_at": now()})

    def pinned(self, recipe_key: str, uri: str) -> str | None:
        """The pinned revision of a URI of a recipe."""
        query = sa.select(pins.c.revision).where(pins.c.recipe_key == recipe_key, pins.c.uri == uri)
        with self.read() as db:
            return db.execute(query).scalar()

    def recipe_keys(self) -> list[str]:
        """Every model line that has an artifact."""
        with self.read() as db:
            return list(db.execute(sa.select(heads.c.recipe_key).distinct().order_by(heads.c.recipe_key)).scalars())


def _index(db: sa.Connection, manifest: Manifest) -> None:
    """An artifact that took the place of another (its folder was deleted and made again) replaces it.

    One of the same digest brings its own date: what is not hashed may differ.
    """
    ref = manifest.ref
    known = sa.update(artifacts).where(artifacts.c.digest == ref.digest).values(_row_of(manifest))
    if db.execute(known).rowcount:
        return
    place = (artifacts.c.kind == ref.kind, artifacts.c.fingerprint == ref.fingerprint)
    db.execute(sa.delete(artifacts).where(*place))
    db.execute(sa.insert(artifacts).values(_row_of(manifest)))
    rows = [{"child": ref.digest, "role": role, "parent": p.digest} for role, p in manifest.parents.items()]
    if rows:
        db.execute(sa.insert(edges), rows)


def _row_of(manifest: Manifest) -> dict[str, Any]:
    ref = manifest.ref
    return {
        "digest": ref.digest, "kind": ref.kind, "fingerprint": ref.fingerprint, "size_bytes": manifest.size_bytes,
        "counts": json.dumps(dict(manifest.counts)), "created_at": manifest.created_at,
    }  # fmt: skip


def _require_indexed(db: sa.Connection, manifest: Manifest) -> bool:
    """True when the artifact is in the index. Raises IntegrityError when the index says anything else of it than its manifest."""
    ref, row = manifest.ref, _row_of(manifest)
    place = (artifacts.c.kind == ref.kind) & (artifacts.c.fingerprint == ref.fingerprint)
    found = db.execute(sa.select(artifacts).where((artifacts.c.digest == ref.digest) | place)).mappings().all()
    for known in found:
        if odd := [name for name in row if known[name] != row[name]]:
            raise _misled("artifacts", manifest, f"{odd[0]} is {known[odd[0]]!r}, the manifest says {row[odd[0]]!r}")
    parents = {role: parent.digest for role, parent in manifest.parents.items()}
    query = sa.select(edges.c.role, edges.c.parent).where(edges.c.child == ref.digest)
    if found and (said := {edge.role: edge.parent for edge in db.execute(query)}) != parents:
        odd_role = sorted({*said.items()} ^ {*parents.items()})[0][0]
        raise _misled(
            "edges", manifest, f"as {odd_role} stands {said.get(odd_role)!r}, in the manifest {parents.get(odd_role)!r}"
        )
    return bool(found)


def _misled(table: str, manifest: Manifest, said: str) -> IntegrityError:
    return IntegrityError(
        f"catalog table {table} is wrong about {manifest.kind} {manifest.digest[:12]}: {said}",
        why="Children are found and digests are looked up there.",
        cure="`ft-pipeline catalog rebuild` makes the index anew from the manifests",
    )


def _replace(db: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Insert or update by primary key, in a way that both databases know; writers take turns."""
    same = [column == row[column.name] for column in table.primary_key]
    if db.execute(sa.update(table).where(*same).values(row)).rowcount == 0:
        db.execute(sa.insert(table).values(row))
    written(db, table, *(row[column.name] for column in table.primary_key))


def _ref(row: Any) -> Ref:
    return Ref(kind=row.kind, fingerprint=row.fingerprint, digest=row.digest)
