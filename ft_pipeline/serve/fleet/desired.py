"""What each pool should hold, by the catalog: production versions, verified once, deployed in the pool of their base."""

from __future__ import annotations

from dataclasses import dataclass

from ft_pipeline.errors import FtError, NotFoundError
from ft_pipeline.register.artifact import seal, verify_seals
from ft_pipeline.serve.deploy import verified
from ft_pipeline.serve.fleet.inventory import POOL_PREFIX, Inventory, Pool
from ft_pipeline.serve.live import PERMITTED
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, ModelVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the replicas of one pool should be."""

    pool: Pool
    adapters: dict[str, str]
    """`tenant/model@3` -> digest of its adapter: on every replica."""
    permitted: dict[str, str]
    """The same for what may be there because somebody asked for it."""
    refused: dict[str, str]
    """Versions in production that are not wanted, and why."""
    model_ids: frozenset[str]
    """Digest and fingerprint of the model in memory: one of them is in the name of its folder."""


def wanted(inventory: Inventory, catalog: Catalog) -> list[Wanted]:
    """What the catalog says now. Reads only."""
    versions = catalog.models()
    return [_wanted(pool, versions, catalog) for pool in inventory.pools]


def deploy_production(inventory: Inventory, *, catalog: Catalog, store: Store, settings: Settings) -> dict[str, str]:
    """Writes into the catalog which pool serves which version; a version is verified to its raw bytes before. Returns version -> refusal.

    The catalog's own rules decide (a passed report on the pool's base); what they or the bytes refuse is reported and not deployed.
    """
    known, versions, refused = catalog.pools(), catalog.models(), {}
    for pool in inventory.pools:
        if pool.kind == "shared" and known.get(pool.catalog_id) != pool.base and _serves_any(pool, versions):
            try:
                catalog.set_pool(pool.catalog_id, pool.base)
            except FtError as error:
                refused[pool.name] = str(error)
                continue
        for version in _new(pool, versions, catalog):
            try:
                verified(version, catalog=catalog, store=store, settings=settings)
                verify_seals(catalog, settings)
                catalog.deploy(pool.catalog_id, version.id)
                seal(catalog, settings)
            except FtError as error:
                refused[version.label] = str(error)
    _forget_pools(inventory, catalog)
    return refused


def _serves_any(pool: Pool, versions: list[ModelVersion]) -> bool:
    return any(_belongs(version, pool) for version in versions)


def _new(pool: Pool, versions: list[ModelVersion], catalog: Catalog) -> list[ModelVersion]:
    """Versions in production that the pool should serve and, in the catalog, does not."""
    there = {v.id for v in catalog.deployed(pool.catalog_id)}
    return [
        v for v in versions if v.stage == "production" and _belongs(v, pool) and v.id not in there and not pool.drain
    ]


def _forget_pools(inventory: Inventory, catalog: Catalog) -> None:
    """A pool that left the inventory, or drains, serves nothing."""
    alive = {pool.catalog_id for pool in inventory.pools if not pool.drain}
    for pool in (p for p in catalog.pools() if p.startswith(POOL_PREFIX) and p not in alive):
        for version in catalog.deployed(pool):
            catalog.undeploy(pool, version.id)


def _wanted(pool: Pool, versions: list[ModelVersion], catalog: Catalog) -> Wanted:
    on_base = [v for v in versions if pool.kind == "shared" and _belongs(v, pool)]
    deployed = {v.id for v in catalog.deployed(pool.catalog_id)}
    production = [v for v in on_base if v.stage == "production"]
    missing = {} if pool.drain else {v.label: "not deployed" for v in production if v.id not in deployed}
    return Wanted(
        pool=pool,
        adapters={v.label: v.adapter_digest for v in production if v.id in deployed and not pool.drain},
        permitted={v.label: v.adapter_digest for v in on_base if v.stage in PERMITTED},
        refused=missing,
        model_ids=_model_ids(pool, catalog),
    )


def _model_ids(pool: Pool, catalog: Catalog) -> frozenset[str]:
    try:
        return frozenset({pool.base, catalog.ref(pool.base).fingerprint})
    except NotFoundError:
        return frozenset({pool.base})


def _belongs(version: ModelVersion, pool: Pool) -> bool:
    """An adapter belongs to shared pools of its base."""
    return pool.kind == "shared" and version.artifact_type == "lora_adapter" and version.base_digest == pool.base
