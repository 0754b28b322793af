"""Brings every replica to what the catalog says: one pass, safe to repeat, safe to run twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from ft_pipeline.errors import FtError
from ft_pipeline.serve.deploy import verified
from ft_pipeline.serve.fleet.collect import collect
from ft_pipeline.serve.fleet.desired import Wanted, deploy_production, wanted
from ft_pipeline.serve.fleet.inventory import Inventory, read_inventory
from ft_pipeline.serve.fleet.replica import Refusal, Replica, Seen
from ft_pipeline.serve.fleet.report import FleetReport, PoolReport, ReplicaReport, keep, kept
from ft_pipeline.serve.fleet.steps import Step, faults, steps
from ft_pipeline.serve.live import PERMITTED
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.paths import adapter_folders, fleet_report_path

AT_ONCE = 4
"""Loads that one replica does together: they wait for the bucket, then for each other at the engine."""


@dataclass(frozen=True)
class Fleet:
    """The inventory, what the catalog wants of it, and how to reach it."""

    settings: Settings
    catalog: Catalog
    store: Store
    inventory: Inventory
    open_client: Callable[[], httpx.AsyncClient] = httpx.AsyncClient
    """Tests hand in clients of replicas in the same process."""

    async def look(self) -> FleetReport:
        """What is there and what would be done. Changes nothing."""
        return await self._pass(act=False)

    async def reconcile(self) -> FleetReport:
        """Deploys in the catalog, repairs every replica, removes folders that nobody names, keeps the report."""
        refused = await asyncio.to_thread(
            deploy_production, self.inventory, catalog=self.catalog, store=self.store, settings=self.settings
        )
        report = await self._pass(act=True, refused=refused)
        keep(report, fleet_report_path(self.settings.home))
        return report

    async def _pass(self, *, act: bool, refused: Mapping[str, str] | None = None) -> FleetReport:
        wants = await asyncio.to_thread(wanted, self.inventory, self.catalog)
        async with self.open_client() as client:
            pools = await asyncio.gather(*(self._pool(want, client, act=act) for want in wants))
        pools = [_with_reasons(pool, refused or {}) for pool in pools]
        last = kept(fleet_report_path(self.settings.home))
        before = dict(last.unnamed_since) if last else {}
        if not act:
            return FleetReport(at=now(), acted=False, pools=tuple(pools), unnamed_since=before)
        pools, unnamed = await asyncio.to_thread(collect, pools, wants, before, asked_for=self._asked_for)
        return FleetReport(at=now(), acted=True, pools=tuple(pools), unnamed_since=unnamed)

    async def _pool(self, want: Wanted, client: httpx.AsyncClient, *, act: bool) -> PoolReport:
        urls = await asyncio.to_thread(want.pool.addresses)
        visits = (_visit(want, Replica(url, client), why=self._why if act else None) for url in urls)
        return PoolReport(
            pool=want.pool.name,
            kind=want.pool.kind,
            base=want.pool.base,
            wanted=want.adapters,
            refused=want.refused,
            replicas=tuple(await asyncio.gather(*visits)),
            idle=want.pool.kind == "shared" and not want.adapters and not want.refused,
        )

    def _asked_for(self, digest: str) -> bool:
        """Whether somebody may ask for an adapter now."""
        return any(v.adapter_digest == digest and v.stage in PERMITTED for v in self.catalog.models())

    def _why(self, name: str) -> str:
        """Why a replica may have refused a version: what our own look at its signature and bytes says."""
        try:
            verified(self.catalog.model(name), catalog=self.catalog, store=self.store, settings=self.settings)
        except FtError as error:
            return str(error)
        return "its bytes are good here: the replica's log says why (its base, its store, its keys)"


def open_fleet(settings: Settings, *, catalog: Catalog, store: Store) -> Fleet:
    """The fleet of FT_FLEET. Raises UserError."""
    return Fleet(settings=settings, catalog=catalog, store=store, inventory=read_inventory(settings.fleet))


async def _visit(want: Wanted, replica: Replica, *, why: Callable[[str], str] | None) -> ReplicaReport:
    """One replica: look, repair, look again. Without `why` it only looks."""
    seen = await replica.seen()
    todo = steps(want, seen, _folders(want))
    failed: list[str] = []
    if why and todo:
        failed = await _repair(replica, todo, why)
        seen = await replica.seen()
        failed = failed or [f"{_line(step)}: still so after the step" for step in steps(want, seen, _folders(want))]
    wrong = faults(want, seen)
    return ReplicaReport(
        url=replica.url,
        state=_state(seen, wrong, failed, todo=todo, acted=why is not None),
        adapters={h.name: h.digest or "?" for h in seen.held if not h.is_base},
        done=tuple(_line(step) for step in todo),
        failed=(*wrong, *failed),
    )


def _folders(want: Wanted) -> Collection[str] | None:
    return adapter_folders(Path(want.pool.cache)) if want.pool.cache else None


async def _repair(replica: Replica, todo: Sequence[Step], why: Callable[[str], str]) -> list[str]:
    """Takes the steps; returns those that failed, with the reason."""
    gate = asyncio.Semaphore(AT_ONCE)
    calls: dict[str, Callable[[str], Awaitable[Refusal | None]]] = {"load": replica.load, "unload": replica.unload}

    async def take(step: Step) -> str | None:
        async with gate:
            try:
                refusal = await calls[step.do](step.name)
            except httpx.HTTPError as error:
                return f"{_line(step)}: {type(error).__name__} {error}"
        if refusal is None:
            return None
        reason = f"\n{await asyncio.to_thread(why, step.name)}" if step.do == "load" else ""
        return f"{_line(step)}: {refusal.status} {refusal.message}{reason}"

    failed: list[str | None] = []
    for kind in ("unload", "load"):
        failed += await asyncio.gather(*(take(step) for step in todo if step.do == kind))
    return [line for line in failed if line]


def _with_reasons(pool: PoolReport, refused: Mapping[str, str]) -> PoolReport:
    """The pool with why its versions were not deployed."""
    own = {name: refused.get(name, why) for name, why in pool.refused.items()}
    return replace(pool, refused={**own, **({pool.pool: refused[pool.pool]} if pool.pool in refused else {})})


def _line(step: Step) -> str:
    return f"{step.do} {step.name} ({step.why})"


def _state(seen: Seen, wrong: Sequence[str], failed: Sequence[str], *, todo: Sequence[Step], acted: bool) -> str:
    if seen.trouble:
        return "down"
    if wrong:
        return "fault"
    if failed:
        return "refused"
    if todo:
        return "repaired" if acted else "drifted"
    return "ok"
