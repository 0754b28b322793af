"""Who the caller is and what it may use, and the audit log of its tenant."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from ft_pipeline.errors import NotFoundError
from ft_pipeline.store.platform.audit import AuditLine
from ft_pipeline.store.platform.rows import LIVE
from ft_pipeline.web.auth import Anybody, Auditor
from ft_pipeline.web.moments import unix
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.quotas import WAITING
from ft_pipeline.web.refusals import Absent


class KeyShown(BaseModel):
    """The key of this request, without its secret part."""

    prefix: str
    name: str
    roles: list[str]
    created_at: int
    expires_at: int | None


class LimitsShown(BaseModel):
    """null: no limit."""

    concurrent_jobs: int | None
    queued_jobs: int | None
    gpu_hours_a_month: float | None
    storage_bytes: int | None
    money_a_month: float | None
    requests_a_minute: int | None
    file_bytes: int | None


class Use(BaseModel):
    """Now. Money and GPU hours of the month: /v1/platform/usage."""

    concurrent_jobs: int
    queued_jobs: int
    """Paused ones included: they keep their place among those that may wait."""
    storage_bytes: int
    jobs: dict[str, int]
    """By their true status."""


class Me(BaseModel):
    """Who calls."""

    object: Literal["platform.caller"] = "platform.caller"
    tenant: str
    tier: int
    key: KeyShown
    limits: LimitsShown
    use: Use


class AuditEntry(BaseModel):
    """One act."""

    object: Literal["platform.audit_line"] = "platform.audit_line"
    id: str
    created_at: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    sha256: str


class AuditPage(BaseModel):
    """Newest first; `after` is the id of the last one of the page before."""

    object: Literal["list"] = "list"
    data: list[AuditEntry]
    has_more: bool
    first_id: str | None
    last_id: str | None


def router(platform: Platform) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/platform", tags=["platform"])

    @routes.get("/me")
    def me(caller: Anybody) -> Me:
        return _me(platform, caller)

    @routes.get("/audit")
    def audit(
        caller: Auditor,
        after: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> AuditPage:
        try:
            place = int(after) if after else None
            lines = platform.records.audit_lines(tenant=caller.tenant, after=place, limit=limit + 1)
        except NotFoundError as error:
            raise Absent(error.what, code="not_found", param="after", cure=error.cure) from None
        entries = [_entry(line) for line in lines[:limit]]
        first, last = (entries[0].id, entries[-1].id) if entries else (None, None)
        return AuditPage(data=entries, has_more=len(lines) > limit, first_id=first, last_id=last)

    return routes


def _me(platform: Platform, caller: Caller) -> Me:
    records = platform.records
    tenant, key, counts = records.tenant(caller.tenant), records.key(caller.key), records.counts(caller.tenant)
    return Me(
        tenant=tenant.id,
        tier=tenant.tier,
        key=KeyShown(
            prefix=key.prefix, name=key.name, roles=list(key.roles), created_at=unix(key.created_at),
            expires_at=unix(key.expires_at) if key.expires_at else None,
        ),
        limits=LimitsShown(**asdict(tenant.limits)),
        use=Use(
            concurrent_jobs=sum(counts.get(s, 0) for s in LIVE),
            queued_jobs=sum(counts.get(s, 0) for s in WAITING),
            storage_bytes=records.stored_bytes(caller.tenant),
            jobs=dict(counts),
        ),
    )  # fmt: skip


def _entry(line: AuditLine) -> AuditEntry:
    return AuditEntry(
        id=str(line.seq), created_at=unix(line.created_at), actor=line.actor, action=line.action, subject=line.subject,
        detail=dict(line.detail), sha256=line.sha256,
    )  # fmt: skip
