"""API keys as rows: the public prefix and an HMAC of the whole key, never the key. Made, replaced and revoked with a line in the audit log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.platform.audit import add_audit
from ft_pipeline.store.platform.rows import Tenant
from ft_pipeline.store.platform.tables import api_keys, tenants
from ft_pipeline.store.platform.tenants import find_tenant, read_tenant

TOUCH_SECONDS = 60
"""`last_used_at` is this coarse: a write for every request would make readers wait for writers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """A key before it is a row."""

    prefix: str
    hmac_sha256: str
    tenant: str
    name: str
    roles: Sequence[str]
    expires_at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A row of `api_keys`, without the digest."""

    prefix: str
    tenant: str
    name: str
    roles: tuple[str, ...]
    created_by: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    """At most a minute old while it is used."""

    def refused_because(self, moment: str) -> str | None:
        """Why the key is not good at a time, None when it is."""
        if self.revoked_at is not None:
            return "it was revoked"
        return "it has expired" if self.expires_at is not None and self.expires_at <= moment else None


class Keys(Database):
    """The keys of every tenant."""

    def add_key(self, new: NewKey, *, actor: str) -> ApiKey:
        """A new key. Raises NotFoundError for an unknown tenant."""
        with self.write() as db:
            return _add(db, new, actor=actor, action="key.create", detail={})

    def replace_key(self, prefix: str, new: NewKey, *, actor: str, grace_seconds: int) -> ApiKey:
        """A new key with another's tenant, name and roles; the old one expires after the grace, not later than it would have.

        Raises NotFoundError, UserError for a key that is good no more.
        """
        with self.write() as db:
            old = _find(db, prefix)
            if why := old.refused_because(now()):
                raise UserError(
                    f"key {prefix} cannot be rotated: {why}", cure=f"ft-pipeline tenants key create {old.tenant}"
                )
            ends = (datetime.now(UTC) + timedelta(seconds=grace_seconds)).isoformat(timespec="microseconds")
            ends = min(ends, old.expires_at or ends)
            db.execute(sa.update(api_keys).where(api_keys.c.prefix == prefix).values(expires_at=ends))
            detail = {"replaces": prefix, "until": ends}
            return _add(db, new, actor=actor, action="key.rotate", detail=detail)

    def revoke_key(self, prefix: str, *, actor: str, reason: str) -> ApiKey:
        """From now it is refused; a second time changes nothing. Raises NotFoundError."""
        with self.write() as db:
            key = _find(db, prefix)
            if key.revoked_at is not None:
                return key
            db.execute(sa.update(api_keys).where(api_keys.c.prefix == prefix).values(revoked_at=now()))
            detail = {"reason": reason, "name": key.name}
            add_audit(db, actor=actor, tenant=key.tenant, action="key.revoke", subject=prefix, detail=detail)
            return _find(db, prefix)

    def key(self, prefix: str) -> ApiKey:
        """One key. Raises NotFoundError."""
        with self.read() as db:
            return _find(db, prefix)

    def keys(self, tenant: str | None = None) -> list[ApiKey]:
        """Keys, oldest first, also those that are good no more."""
        query = sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.prefix)
        if tenant is not None:
            query = query.where(api_keys.c.tenant == tenant)
        with self.read() as db:
            return [_read(row) for row in db.execute(query).mappings()]

    def known_key(self, prefix: str) -> tuple[ApiKey, Tenant, str] | None:
        """What there is of a prefix: the key, its tenant, the digest that the whole key must have. None when there is none."""
        joined = sa.select(api_keys, *(c.label(f"tenant_{c.name}") for c in tenants.c)).join(tenants)
        with self.read() as db:
            row = db.execute(joined.where(api_keys.c.prefix == prefix)).mappings().first()
        if row is None:
            return None
        owner = read_tenant({c.name: row[f"tenant_{c.name}"] for c in tenants.c})
        return _read({c.name: row[c.name] for c in api_keys.c}), owner, row["hmac_sha256"]

    def touch_key(self, key: ApiKey) -> None:
        """Writes down that the key was used, unless that was written within the last minute."""
        earlier = (datetime.now(UTC) - timedelta(seconds=TOUCH_SECONDS)).isoformat(timespec="microseconds")
        if key.last_used_at is not None and key.last_used_at > earlier:
            return
        stale = sa.or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= earlier)
        with self.write() as db:
            here = sa.update(api_keys).where(api_keys.c.prefix == key.prefix, stale)
            db.execute(here.values(last_used_at=now()))


def _add(db: sa.Connection, new: NewKey, *, actor: str, action: str, detail: dict[str, Any]) -> ApiKey:
    find_tenant(db, new.tenant)
    row = {"prefix": new.prefix, "tenant": new.tenant, "name": new.name, "hmac_sha256": new.hmac_sha256,
           "roles": json.dumps(sorted(new.roles)), "created_by": actor, "created_at": now(), "expires_at": new.expires_at}  # fmt: skip
    db.execute(sa.insert(api_keys).values(**row))
    said = {"name": new.name, "roles": sorted(new.roles), "expires_at": new.expires_at, **detail}
    add_audit(db, actor=actor, tenant=new.tenant, action=action, subject=new.prefix, detail=said)
    return _find(db, new.prefix)


def _find(db: sa.Connection, prefix: str) -> ApiKey:
    row = db.execute(sa.select(api_keys).where(api_keys.c.prefix == prefix)).mappings().first()
    if row is None:
        raise NotFoundError(f"no API key with the prefix {prefix!r}", cure="ft-pipeline tenants key list TENANT")
    return _read(row)


def _read(row: Any) -> ApiKey:
    values = {name: value for name, value in row.items() if name != "hmac_sha256"}
    values["roles"] = tuple(json.loads(row["roles"]))
    return ApiKey(**values)
