"""Lets a version answer: signature, chain, files and the tokens of its prompts are verified, then the catalog decides and remembers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ft_pipeline.errors import FtError, GateRefused, IntegrityError
from ft_pipeline.gate.artifact import RECERTIFIED_KIND
from ft_pipeline.register.artifact import Registered, open_registered, seal, verify_seals
from ft_pipeline.serve.artifact import DEPLOYMENT, KIND, POOL_PREFIX, pool_of
from ft_pipeline.serve.parity import require_parity
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Spec


def deploy(version: ModelVersion, *, catalog: Catalog, store: Store, settings: Settings) -> Registered:
    """Puts a production version into the pool of its base. Raises IntegrityError, GateRefused; then nothing is deployed."""
    registered = verified(version, catalog=catalog, store=store, settings=settings)
    verify_seals(catalog, settings)
    require_parity(registered.adapter, version.label, store)
    pool = pool_of(version.base_digest)
    catalog.set_pool(pool, version.base_digest)
    catalog.deploy(pool, version.id)
    seal(catalog, settings)
    return registered


def verified(version: ModelVersion, *, catalog: Catalog, store: Store, settings: Settings) -> Registered:
    """The registered model of a version: the signature holds, it is about this version, and the adapter's files are whole."""
    if version.registered_digest is None:
        raise IntegrityError(
            f"{version.label} was never signed",
            why="Only signed versions answer.",
            cure=f"run its recipe again: `ft-pipeline run {version.line}`",
        )
    registered = open_registered(store, catalog.ref(version.registered_digest), settings)
    signed = (registered.model, registered.adapter.digest, registered.base.digest)
    if signed != (version.label, version.adapter_digest, version.base_digest):
        raise IntegrityError(
            f"the statement of {version.label} is about {registered.model} (adapter {registered.adapter.digest[:12]})",
            why="The catalog and the signed statement name different bytes.",
            cure="restore the catalog from a backup: the signed statement is right",
        )
    require_certified(version, registered, store)
    store.fetch(registered.adapter)
    return registered


def is_recertified(registered: Registered) -> bool:
    """True when the version stands on a base that its adapter was not trained on."""
    return registered.report.kind == RECERTIFIED_KIND


def require_certified(version: ModelVersion, registered: Registered, store: Store) -> None:
    """Raises GateRefused unless the version's base is the one that its adapter was trained on, or one that it was recertified for."""
    trained_on = store.recorded(registered.adapter).parents.get("base")
    if trained_on is None or trained_on == registered.base:
        return
    if is_recertified(registered) and store.recorded(registered.report).parents.get("base") == registered.base:
        return
    raise GateRefused(
        f"{version.label} is not certified for base {registered.base.digest[:12]}: it was trained on {trained_on.digest[:12]}",
        why="An adapter on another base gives fluent answers that nobody measured.",
        cure="`ft-pipeline bump status` shows on which bases it is certified",
    )


def live(catalog: Catalog) -> list[ModelVersion]:
    """The versions that answer on this machine, by line."""
    pools = [pool for pool in catalog.pools() if pool.startswith(POOL_PREFIX)]
    return sorted((v for pool in pools for v in catalog.deployed(pool)), key=lambda v: (v.line, v.version))


def record(
    version: ModelVersion, registered: Artifact, *, store: Store, live_now: Sequence[ModelVersion], parity: str = ""
) -> Artifact:
    """The `deployment` artifact: what answers for a version's line now, itself or another version. `parity`: what was compared."""
    line = [v for v in live_now if v.line == version.line]
    body = {
        "line": version.line,
        "registered": version.label,
        "pools": [
            {"pool": pool_of(v.base_digest), "model": v.label, "base": v.base_digest, "adapter": v.adapter_digest} for v in line
        ],
        **({"parity": parity} if parity else {}),
    }  # fmt: skip
    spec = Spec(kind=KIND, config=body, parents={"registered": registered.ref}, code=code_digest(Path(__file__)))
    if found := store.find(spec):
        return found
    with store.publish(spec) as draft:
        (draft.folder / DEPLOYMENT).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        draft.counts["live"] = len(line)
    if draft.artifact is None:
        raise FtError("the deployment was not published")
    return draft.artifact
