"""Tenants: who shares the platform, what each may use, who is suspended. Every change is a line in the audit log, in one transaction."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import NotFoundError, UserError, did_you_mean
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.platform.audit import add_audit
from ft_pipeline.store.platform.rows import Limits, Tenant
from ft_pipeline.store.platform.tables import tenants

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")
"""What recipes take too (recipe_data.is_name), in ASCII: it is a part of model names and of partitions."""
NORMAL_TIER = 10


class Tenants(Database):
    """The tenants."""

    def add_tenant(
        self, tenant_id: str, *, actor: str, tier: int = NORMAL_TIER, limits: Limits | None = None
    ) -> Tenant:
        """A new tenant, or UserError for a name that is taken or none."""
        if not NAME.fullmatch(tenant_id):
            raise UserError(
                f"{tenant_id!r} is no name for a tenant",
                why="It becomes a part of model names, `tenant/name@N`, and of Kubernetes labels.",
                cure="lower-case letters, digits, '-' and '_', at most 60",
            )
        limits = _checked(limits or Limits())
        row = {"id": tenant_id, "tier": _tier(tier), "limits": json.dumps(asdict(limits)), "created_at": now()}
        with self.write() as db:
            if db.execute(sa.select(tenants.c.id).where(tenants.c.id == tenant_id)).first():
                raise UserError(f"tenant {tenant_id} exists already", cure=f"ft-pipeline tenants limits {tenant_id}")
            db.execute(sa.insert(tenants).values(**row))
            detail = {"tier": tier, "limits": asdict(limits)}
            add_audit(db, actor=actor, tenant=tenant_id, action="tenant.add", subject=tenant_id, detail=detail)
            return find_tenant(db, tenant_id)

    def tenant(self, tenant_id: str) -> Tenant:
        """One tenant. Raises NotFoundError."""
        with self.read() as db:
            return find_tenant(db, tenant_id)

    def tenants(self) -> list[Tenant]:
        """All, by name."""
        with self.read() as db:
            return [read_tenant(row) for row in db.execute(sa.select(tenants).order_by(tenants.c.id)).mappings()]

    def set_limits(self, tenant_id: str, *, actor: str, tier: int | None = None, **changes: Any) -> Tenant:
        """Changes some limits (names of rows.Limits) or the tier; the rest stays. Raises NotFoundError, UserError."""
        with self.write() as db:
            was = find_tenant(db, tenant_id)
            limits = asdict(_checked(replace(was.limits, **changes)))
            values = {"limits": json.dumps(limits), "tier": was.tier if tier is None else _tier(tier)}
            db.execute(sa.update(tenants).where(tenants.c.id == tenant_id).values(**values))
            detail = {**changes, **({} if tier is None else {"tier": tier})}
            add_audit(db, actor=actor, tenant=tenant_id, action="tenant.limits", subject=tenant_id, detail=detail)
            return find_tenant(db, tenant_id)

    def suspend(self, tenant_id: str, *, actor: str, reason: str) -> Tenant:
        """From now its keys are refused. Its models and rows stay. Raises NotFoundError, UserError when it is suspended already."""
        return self._switch(tenant_id, actor=actor, reason=reason, suspended=True)

    def resume(self, tenant_id: str, *, actor: str, reason: str) -> Tenant:
        """Its keys are good again. Raises NotFoundError, UserError when it is not suspended."""
        return self._switch(tenant_id, actor=actor, reason=reason, suspended=False)

    def _switch(self, tenant_id: str, *, actor: str, reason: str, suspended: bool) -> Tenant:
        with self.write() as db:
            if (find_tenant(db, tenant_id).suspended_at is not None) == suspended:
                raise UserError(f"tenant {tenant_id} is {'' if suspended else 'not '}suspended")
            at = now() if suspended else None
            db.execute(sa.update(tenants).where(tenants.c.id == tenant_id).values(suspended_at=at))
            action = "tenant.suspend" if suspended else "tenant.resume"
            add_audit(db, actor=actor, tenant=tenant_id, action=action, subject=tenant_id, detail={"reason": reason})
            return find_tenant(db, tenant_id)


def find_tenant(db: sa.Connection, tenant_id: str) -> Tenant:
    """Inside a transaction. Raises NotFoundError with the nearest name."""
    row = db.execute(sa.select(tenants).where(tenants.c.id == tenant_id)).mappings().first()
    if row is None:
        known = list(db.execute(sa.select(tenants.c.id)).scalars())
        cure = did_you_mean(tenant_id, known) if known else "ft-pipeline tenants add NAME"
        raise NotFoundError(f"no tenant {tenant_id!r}", cure=cure)
    return read_tenant(row)


def read_tenant(row: Any) -> Tenant:
    """Of a row of the table."""
    values = dict(row)
    values["limits"] = Limits(**json.loads(row["limits"]))
    return Tenant(**values)


def _checked(limits: Limits) -> Limits:
    if wrong := [name for name, value in asdict(limits).items() if value is not None and value < 0]:
        raise UserError(
            f"limit {wrong[0]} is {getattr(limits, wrong[0])}", cure="0 for nothing, or no number for no limit"
        )
    return limits


def _tier(tier: int) -> int:
    if not 1 <= tier <= 1000:
        raise UserError(f"tier {tier}", why="It is a weight in the queue, 10 for most.", cure="a number from 1 to 1000")
    return tier
