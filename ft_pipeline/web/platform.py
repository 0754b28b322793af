"""What every route is given: the settings, the store, the catalog, the platform's records; and who calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store, open_store
from ft_pipeline.store.catalog import Catalog, open_catalog
from ft_pipeline.store.platform.open import Records, open_records

Role = Literal["submit", "approve", "audit", "infer"]
"""submit: files and jobs. approve: promotion, rollback, deployment. audit: reads everything of the tenant. infer: asks models."""
ROLES: tuple[Role, ...] = ("submit", "approve", "audit", "infer")


@dataclass(frozen=True)
class Platform:
    """Opened once for a process."""

    settings: Settings
    store: Store
    catalog: Catalog
    records: Records


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who a key belongs to."""

    tenant: str
    key: str
    """The key's public prefix."""
    name: str
    """What its owner called it: the actor of what it does is `tenant/name`."""
    roles: frozenset[str]

    @property
    def actor(self) -> str:
        """How history and the audit log name the caller."""
        return f"{self.tenant}/{self.name}"


def open_platform(settings: Settings) -> Platform:
    """The platform that the settings name. Raises StorageError, UserError."""
    return Platform(settings, open_store(settings), open_catalog(settings), open_records(settings))
