"""A fleet for tests: versions in a catalog, fake vLLM replicas whose resolver verifies as ours does, keys of two tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ft_pipeline import settings as settings_module
from ft_pipeline.errors import FtError
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline.serve.deploy import verified
from ft_pipeline.serve.fleet.inventory import Inventory, Pool
from ft_pipeline.serve.fleet.reconcile import Fleet
from ft_pipeline.serve.fleet.report import FleetReport
from ft_pipeline.serve.gateway.app import build_gateway
from ft_pipeline.serve.gateway.authority import Caller
from ft_pipeline.serve.gateway.front import GatewayLimits
from ft_pipeline.serve.gateway.main import open_client
from ft_pipeline.serve.gateway.replicas import Replicas
from ft_pipeline.serve.gateway.targets import Names
from ft_pipeline.store.catalog import ModelVersion
from ft_pipeline_tests import lines
from ft_pipeline_tests.serve.fake_vllm import Listening, Replica

LINE = "acme/router"
KEYS = {
    "acme-key": Caller(tenant="acme"),
    "globex-key": Caller(tenant="globex"),
    "approver": Caller(tenant="acme", may_infer=False),
}


@dataclass
class Keys:
    """Static keys."""

    known: Mapping[str, Caller]

    def caller(self, bearer_key: str, *, address: str) -> Caller | None:
        return self.known.get(bearer_key)


@dataclass
class Ledger:
    """A meter that remembers."""

    rows: list[tuple[str, str, int, int]] = field(default_factory=list)

    def add(self, tenant: str, version: str, *, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        assert seconds >= 0
        self.rows.append((tenant, version, prompt_tokens, completion_tokens))


@dataclass
class TestFleet:
    """Makes versions, replicas and gateways; stops what it started."""

    __test__ = False
    home: Any
    store: Any
    catalog: Any
    folder: Path
    pools: list[Pool] = field(default_factory=list)
    servers: list[Listening] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    def version(
        self, seed: int, *, line: str = LINE, base: str = "base", full: bool = False, **more: Any
    ) -> ModelVersion:
        """A registered version; in production unless auto_promote=False."""
        lines.recipe_file(self.home, line)
        plain = lines.plain_base(self.store, base)
        made = lines.publish_line(self.store, self.catalog, base=plain, line=line, seed=seed, **more)
        recipe = find_recipe(settings_module.load(), line)
        if full:
            recipe = replace(recipe, finetune=replace(recipe.finetune, lora=None))
        candidate = Candidate(
            recipe=recipe, adapter=made["adapter"].ref, report=made["eval_report"].ref, base=plain.ref, run_id="r"
        )
        return register(candidate, store=self.store, catalog=self.catalog, settings=self.home).model

    def base(self, word: str = "base") -> str:
        """Digest of a base."""
        return lines.plain_base(self.store, word).ref.digest

    def cache(self, base: str) -> Path:
        """Where the replicas of a base keep adapters."""
        return self.folder / f"cache-{base[:8]}"

    def resolver(self, base: str):
        """What the plugin does: catalog, stage, base, signature, bytes, then a folder named by its digest."""

        def resolve(name: str) -> Path | None:
            try:
                version = self.catalog.model(name)
                if version.stage not in ("staging", "production") or version.base_digest != base:
                    return None
                verified(version, catalog=self.catalog, store=self.store, settings=self.home)
            except FtError:
                return None
            folder = self.cache(base) / version.adapter_digest
            folder.mkdir(parents=True, exist_ok=True)
            return folder

        return resolve

    def pool(self, *, name: str = "main", base: str | None = None, replicas: int = 1, **options: Any) -> list[Replica]:
        """Starts replicas and names them in the inventory."""
        base = base or self.base()
        known = {k: options.pop(k) for k in ("kind", "serves", "drain", "max_replicas", "cache") if k in options}
        started = [Replica(self.resolver(base), **options) for _ in range(replicas)]
        self.servers += started
        self.pools.append(Pool(name=name, base=base, replicas=tuple(r.url for r in started), **known))
        return started

    @property
    def inventory(self) -> Inventory:
        return Inventory(pools=tuple(self.pools))

    def fleet(self) -> Fleet:
        return Fleet(settings=self.home, catalog=self.catalog, store=self.store, inventory=self.inventory)

    def reconcile(self) -> FleetReport:
        return asyncio.run(self.fleet().reconcile())

    def look(self) -> FleetReport:
        return asyncio.run(self.fleet().look())

    def gateway(self, *, limits: GatewayLimits | None = None, metrics_key: str | None = None) -> Listening:
        """A gateway on a port."""
        limits = limits or GatewayLimits()
        replicas = Replicas(self.inventory, open_client(limits))
        app = build_gateway(
            Names(self.catalog), replicas, Keys(KEYS), meter=self.ledger, limits=limits, metrics_key=metrics_key
        )
        self.servers.append(Listening(app))
        return self.servers[-1]

    def close(self) -> None:
        for server in reversed(self.servers):
            server.stop()
