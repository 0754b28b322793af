"""A row is taken down: what holds it, what was made from it, what to do, and a signed event for each step.

Everything that was made of shards with the row is affected, whatever the role: a policy whose reward model learned it, a student
whose teacher did, an adapter that started from another. Read from the manifests, not from the index.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.curate.artifact import CURATED_KIND, LEDGER, SPLITS
from ft_pipeline.errors import GateRefused, NotFoundError, UserError
from ft_pipeline.register.artifact import seal
from ft_pipeline.register.attest import STATEMENT_TYPE, sign
from ft_pipeline.register.keys import signing_key
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.catalog_takedowns import COMPLETED, REQUESTED
from ft_pipeline.store.fingerprint import canonical_json, sha256_bytes
from ft_pipeline.store.manifest import Manifest, Ref

PREDICATE_TYPE = "urn:ft-pipeline:takedown:v1"
ROWS_FILE = "rows.parquet"
NEVER_WEIGHTS = (
    "eval_report",
    "recertification",
    "override",
    "registered_model",
    "deployment",
    "baseline",
    "noise_floor",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Affected:
    """What rows are in, and what was made from them."""

    rows: tuple[str, ...]
    """`r` and 16 hex digits."""
    origins: tuple[str, ...]
    """`file:line` of the raw data."""
    datasets: tuple[tuple[Ref, str], ...]
    """Curated dataset and split."""
    adapters: tuple[Ref, ...]
    """Whose weights learned from a row, themselves or through what they were made of; those that others need first."""
    learned: tuple[str, ...]
    """Digests of the shards with a row and of everything that was made of them, but for reports."""
    versions: tuple[ModelVersion, ...]
    deployments: tuple[tuple[str, ModelVersion], ...]
    """Pool and version."""
    lines: tuple[str, ...]
    """Model lines to run again, in this order."""
    near: tuple[str, ...]
    """Rows that were dropped as duplicates of one of the rows: they come in unless they are taken down too."""
    holding: tuple[Ref, ...]
    """Artifacts whose files still hold a row: raw, curated, shards, samples of reports."""


def affected_by(rows: Sequence[str], *, store: Store, catalog: Catalog) -> Affected:
    """What these rows (ids or prefixes of at least 6 digits) touch. Raises NotFoundError, UserError."""
    manifests = {m.digest: m for m in store.all()}
    curated = [m for m in manifests.values() if m.kind == CURATED_KIND]
    seen = [hit for m in curated for hit in _seen(store, m, rows)]
    keys = _resolved(rows, [key for key, *_ in seen])
    kept = [(m, split, origin) for key, m, split, origin in seen if key in keys and split]
    shards = [m for m in manifests.values() if m.kind == "packed_shards" and _trained_on(store, m, keys, kept=kept)]
    levels = _descendants(manifests, [m.digest for m in shards])
    adapters = sorted(
        (manifests[d] for d in levels if manifests[d].kind in ("adapter", "exported_model")),
        key=lambda m: (levels[m.digest], m.digest),
    )
    digests = {m.digest for m in adapters}
    versions = [v for v in catalog.models() if v.adapter_digest in digests]
    holding = (
        [m for m, *_ in kept]
        + shards
        + [manifests[p.digest] for m, *_ in kept for p in m.parents.values() if p.digest in manifests]
    )
    below = _descendants(manifests, [m.digest for m, split, _ in kept if split == "holdout"])
    samples = [manifests[d] for d in below if "samples.parquet" in manifests[d].files]
    return Affected(
        rows=keys,
        origins=tuple(sorted({origin for key, *_, origin in seen if key in keys and origin})),
        datasets=tuple(sorted({(m.ref, split) for m, split, _ in kept}, key=lambda x: (x[0].digest, x[1]))),
        adapters=tuple(m.ref for m in adapters),
        learned=tuple(sorted(d for d in levels if manifests[d].kind not in NEVER_WEIGHTS)),
        versions=tuple(versions),
        deployments=tuple((pool, v) for v in versions for pool in catalog.pools_of(v.id)),
        lines=_lines(catalog, manifests, [m.digest for m, *_ in kept], levels=levels),
        near=tuple(sorted({n for m in curated for n in _near(store, m, keys)} - set(keys))),
        holding=tuple({m.digest: m.ref for m in [*holding, *samples]}.values()),
    )  # fmt: skip


def request(found: Affected, *, reason: str, catalog: Catalog, settings: Settings) -> None:
    """Records that the rows must be forgotten: from now on curate drops them. Raises UserError without a reason."""
    if not reason.strip():
        raise UserError("a takedown needs a reason", why="Whoever audits this will ask why.", cure='add --reason "..."')
    _record(found, REQUESTED, reason.strip(), catalog=catalog, settings=settings)


def complete(found: Affected, *, reason: str, catalog: Catalog, settings: Settings) -> None:
    """Records that no version answers any more that was made from the rows; none of them can be deployed again.

    Raises GateRefused while one is deployed, UserError for a row that nobody asked to forget.
    """
    asked = {t.row_key for t in catalog.takedowns() if t.event == REQUESTED}
    if missing := [row for row in found.rows if row not in asked]:
        raise UserError(
            f"nobody asked to forget {missing[0]}", cure=f'`ft-pipeline forget {missing[0]} --reason "..."` first'
        )
    if found.deployments:
        served = ", ".join(f"{v.label} in {pool}" for pool, v in found.deployments)
        raise GateRefused(
            f"the takedown of {', '.join(found.rows)} is not complete: {served}",
            why="A version that learned from the row still answers.",
            cure="run the lines of the plan again, so that new versions take their places, or archive the old ones",
        )
    _record(found, COMPLETED, reason.strip() or "no affected version is deployed", catalog=catalog, settings=settings)


def require_not_forgotten(chain: Iterable[str], label: str, catalog: Catalog) -> None:
    """Raises GateRefused when one of the artifacts (digests) that a model is made of learned from a row that was taken down."""
    gone: dict[str, str] = {}
    if events := catalog.takedowns():
        catalog.verify_rows()
    for event in events:
        claim = json.loads(base64.b64decode(json.loads(event.envelope)["payload"]))
        gone |= dict.fromkeys(claim["predicate"]["learned"], event.row_key)
    if found := next((digest for digest in chain if digest in gone), None):
        raise GateRefused(
            f"{label} is made of {found[:12]}, which learned from the row {gone[found]} that was taken down",
            why="A row that must be forgotten must not come back through an older adapter, a reward model or old shards.",
            cure="run the line that made it again, then this one: curate leaves the row out",
        )


def plan(found: Affected) -> list[str]:
    """What a person has to do, step by step, as lines of Markdown."""
    steps = [
        f"Take the rows out of the source: {', '.join(found.origins) or 'the source is not known'}. Curate drops them anyway."
    ]
    steps += [
        f"`ft-pipeline run {line}`: a new dataset without the rows, a new adapter, judged and registered"
        for line in found.lines
    ]
    steps += [f"see that `{v.label}` answers no more in pool `{pool}`" for pool, v in found.deployments]
    if found.near:
        steps.append(
            f"Decide on {len(found.near)} rows that were dropped as duplicates of these and now come in: {', '.join(found.near[:10])}"
        )
    steps.append(f"`ft-pipeline forget --complete {' '.join(found.rows)}`")
    if found.holding:
        steps.append(
            "Delete what still holds the bytes, when no law asks to keep it: "
            + ", ".join(f"`{ref.path}`" for ref in found.holding)
        )
    return [f"{number}. {step}" for number, step in enumerate(steps, start=1)]


def _record(found: Affected, event: str, reason: str, *, catalog: Catalog, settings: Settings) -> None:
    key = signing_key(settings)
    facts = {
        "datasets": sorted({ref.digest for ref, _ in found.datasets}), "learned": list(found.learned),
        "models": [v.label for v in found.versions],
    }  # fmt: skip

    def envelope(row: dict[str, Any]) -> str:
        claim = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": row["row_key"], "digest": {"sha256": sha256_bytes(row["row_key"].encode())}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {**row, **facts},
        }
        return canonical_json(sign(claim, key)).decode()

    catalog.add_takedown(
        found.rows, [v.id for v in found.versions], event=event, actor=settings.actor, reason=reason, sign=envelope
    )
    seal(catalog, settings)


def _seen(store: Store, manifest: Manifest, rows: Sequence[str]) -> Iterator[tuple[str, Manifest, str, str]]:
    """Key, dataset, split (empty when the ledger has it) and origin of each row whose id starts like one of `rows`."""
    for split in SPLITS:
        for row in _rows(store, manifest, f"{split}.parquet", rows=rows):
            yield row["row_id"].partition("-")[0], manifest, split, row.get("origin") or ""
    for row in _rows(store, manifest, LEDGER, rows=rows):
        yield row["row_id"].partition("-")[0], manifest, "", row.get("origin") or ""


def _rows(store: Store, manifest: Manifest, name: str, *, rows: Sequence[str]) -> list[dict[str, Any]]:
    import polars as pl

    if name not in manifest.files:
        return []
    wanted = pl.any_horizontal(pl.col("row_id").str.starts_with(row.partition("-")[0]) for row in rows)
    return pl.scan_parquet(store.fetch_file(manifest.ref, name)).filter(wanted).collect().to_dicts()


def _resolved(rows: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """The whole keys. Each of `rows` must fit exactly one."""
    keys = []
    for row in rows:
        body = row.partition("-")[0]
        fitting = sorted({key for key in found if key.startswith(body)})
        if len(body) < 7 or not fitting:
            raise NotFoundError(
                f"no row {row} in any curated dataset of this store, kept or dropped",
                cure="row ids are in the row_id column of train.parquet and ledger.parquet; give at least 6 digits",
            )
        if len(fitting) > 1:
            raise UserError(f"{row} fits {len(fitting)} rows: {', '.join(fitting[:5])}", cure="give more digits")
        keys.append(fitting[0])
    return tuple(sorted(set(keys)))


def _trained_on(
    store: Store, shards: Manifest, keys: Sequence[str], *, kept: Sequence[tuple[Manifest, str, str]]
) -> bool:
    """True when a row stands in the train windows of the shards, or when they do not say and the dataset has it in train."""
    if ROWS_FILE in shards.files:
        return any(
            row["split"] == "train" and row["row_id"].partition("-")[0] in keys
            for row in _rows(store, shards, ROWS_FILE, rows=keys)
        )
    curated = shards.parents.get("curated")
    return any(split == "train" and curated == m.ref for m, split, _ in kept)


def _descendants(manifests: Mapping[str, Manifest], roots: Sequence[str]) -> dict[str, int]:
    """Everything that was made of the roots, themselves included -> the longest way down to it."""
    children: dict[str, list[str]] = {}
    for digest, manifest in manifests.items():
        for parent in manifest.parents.values():
            children.setdefault(parent.digest, []).append(digest)
    level, todo = dict.fromkeys(roots, 0), list(roots)
    while todo:
        digest = todo.pop()
        if manifests[digest].kind in NEVER_WEIGHTS:  # nothing learns from a report
            continue
        for child in children.get(digest, ()):
            if level.get(child, -1) < level[digest] + 1:
                level[child] = level[digest] + 1
                todo.append(child)
    return level


def _lines(
    catalog: Catalog, manifests: Mapping[str, Manifest], datasets: Sequence[str], *, levels: Mapping[str, int]
) -> tuple[str, ...]:
    """The model lines whose newest dataset or adapter is affected, those on which others stand first."""
    found = {}
    for line in catalog.recipe_keys():
        heads = {ref.digest for ref in catalog.heads(line).values()}
        depths = [levels[d] for d in heads if d in levels and manifests[d].kind == "adapter"]
        if depths or heads & set(datasets):
            found[line] = max(depths, default=0)
    return tuple(sorted(found, key=lambda line: (found[line], line)))


def _near(store: Store, manifest: Manifest, keys: Sequence[str]) -> Iterator[str]:
    """Rows of the ledger that were dropped because one of the rows was kept."""
    import polars as pl

    if LEDGER not in manifest.files:
        return
    dropped = pl.scan_parquet(store.fetch_file(manifest.ref, LEDGER)).filter(
        pl.col("evidence").str.contains('"kept_id"', literal=True)
    )
    for row in dropped.select("row_id", "evidence").collect().to_dicts():
        if str(json.loads(row["evidence"]).get("kept_id", "")).partition("-")[0] in keys:
            yield row["row_id"].partition("-")[0]
