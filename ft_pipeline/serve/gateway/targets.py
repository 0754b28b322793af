"""What a name means now, for this caller: one read of the catalog a request, so that a rollback is one row and no call to vLLM."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ft_pipeline.errors import NotFoundError
from ft_pipeline.serve.engine import Served
from ft_pipeline.serve.fleet.inventory import Inventory, Pool
from ft_pipeline.serve.gateway.authority import Caller, unavailable, unknown_model
from ft_pipeline.serve.gateway.last_good import LastGood
from ft_pipeline.serve.live import PERMITTED, routes
from ft_pipeline.store.catalog import Catalog, ModelVersion

_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[0-9]{1,9}|:(production|staging|base))?"
)
_BASE = re.compile(r"base-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a request goes."""

    asked: str
    """The name in the request, which the answer repeats."""
    label: str
    """What is metered: `tenant/model@3`, `base-<12 hex>`."""
    upstream: str | None
    """The name for vLLM; None for the replica's own base."""
    weights: str
    """Digest of what answers."""
    pools: tuple[Pool, ...]


@dataclass
class Names:
    """Name -> target. Call from threads."""

    catalog: Catalog
    last: LastGood[ModelVersion | None] = field(default_factory=LastGood)

    def target(self, name: str, caller: Caller, inventory: Inventory) -> Target:
        """Raises Refused: 404 for what the caller has not, 503 where no pool holds it."""
        if _BASE.fullmatch(name) or (_NAME.fullmatch(name) and name.endswith(":base")):
            return self._base(name, caller, inventory)
        if not _NAME.fullmatch(name) or name.split("/")[0] != caller.tenant:
            raise unknown_model(name)
        version = self.last.of(name, lambda: self._version(name))
        if version is None:
            raise unknown_model(name)
        whole = inventory.standalone(version.label)
        shared = inventory.shared(version.base_digest) if version.artifact_type == "lora_adapter" else []
        if not whole and not shared:
            raise unavailable(
                f"{version.label} is in {version.stage}, and no pool of the fleet holds "
                + (f"its base {version.base_digest[:12]}" if version.artifact_type == "lora_adapter" else "it"),
                "no_pool",
                retry_after_seconds=30,
            )
        weights = whole[0].base if whole else version.adapter_digest
        return Target(
            asked=name, label=version.label, upstream=version.label, weights=weights, pools=tuple(whole or shared)
        )

    def listed(self, caller: Caller) -> dict[str, Served]:
        """Name -> what it stands for, of the caller's tenant: versions, bare lines and bases."""
        found = {name: route.served for name, route in routes(self._permitted(caller)).items()}
        return {name: served for name, served in found.items() if name == served.id or ":" not in name}

    def known(self, name: str, caller: Caller) -> Served:
        """What a name stands for. Raises Refused."""
        found = routes(self._permitted(caller)).get(name)
        if found is None:
            raise unknown_model(name)
        return found.served

    def _base(self, name: str, caller: Caller, inventory: Inventory) -> Target:
        """A base is for those who have a version that stands on it."""
        served = self.known(name, caller)
        pools = inventory.shared(served.base_digest)
        if not pools:
            raise unavailable(f"no pool of the fleet holds base {served.base_digest[:12]}", "no_pool")
        return Target(asked=name, label=served.id, upstream=None, weights=served.base_digest, pools=tuple(pools))

    def _permitted(self, caller: Caller) -> list[ModelVersion]:
        return [v for v in self.catalog.models(caller.tenant) if v.stage in PERMITTED]

    def _version(self, name: str) -> ModelVersion | None:
        """A bare line means production."""
        try:
            found = self.catalog.model(name if "@" in name or ":" in name else f"{name}:production")
        except NotFoundError:
            return None
        return found if found.stage in PERMITTED else None
