"""Webhook endpoints and the outbox of their deliveries: written with what made the event true, taken by one sender at a time."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.store.platform.audit import add_audit
from ft_pipeline.store.platform.tables import deliveries, webhooks

EVENTS = (
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled", "platform.job.paused",
    "platform.budget.warned", "platform.budget.exhausted",
)  # fmt: skip
MOST = 20
"""Endpoints of a tenant."""
WAITS_SECONDS = (10, 60, 300, 1800, 7200, 21600, 43200)
"""Before each further try: eight tries in a day."""
LEASE_SECONDS = 60
"""A sender that dies leaves its delivery to another after so long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """An endpoint of a tenant."""

    id: str
    tenant: str
    name: str
    url: str
    secret: str
    old_secret: str | None
    old_secret_until: str | None
    events: tuple[str, ...]
    created_at: str
    updated_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One event for one endpoint."""

    id: str
    webhook: Webhook
    event: str
    body: str
    attempts: int
    """Tries before this one."""


class Webhooks(Database):
    """The endpoints of every tenant and what they are owed."""

    def add_webhook(self, tenant: str, *, name: str, url: str, events: Sequence[str], actor: str) -> Webhook:
        """A new endpoint with a new secret. Raises UserError when the tenant has MOST already."""
        moment = now()
        row = {
            "id": f"wh-{secrets.token_hex(12)}", "tenant": tenant, "name": name, "url": url, "secret": new_secret(),
            "events": json.dumps(sorted(set(events))), "created_at": moment, "updated_at": moment,
        }  # fmt: skip
        with self.write() as db:
            if len(_of(db, tenant)) >= MOST:
                raise UserError(f"{tenant} has {MOST} webhook endpoints", cure="delete one that is not used")
            db.execute(sa.insert(webhooks).values(row))
            add_audit(db, actor=actor, tenant=tenant, action="webhook.create", subject=row["id"], detail={"url": url})
            return _one(db, tenant, row["id"])

    def webhook(self, tenant: str, webhook_id: str) -> Webhook:
        """An endpoint of the tenant. Raises NotFoundError."""
        with self.read() as db:
            return _one(db, tenant, webhook_id)

    def webhooks(self, tenant: str) -> list[Webhook]:
        """The tenant's endpoints, newest first."""
        with self.read() as db:
            return _of(db, tenant)

    def change_webhook(
        self, tenant: str, webhook_id: str, *, actor: str, name: str | None = None, url: str | None = None,
        events: Sequence[str] | None = None,
    ) -> Webhook:  # fmt: skip
        """The endpoint with what is not None changed. Raises NotFoundError."""
        said = {"name": name, "url": url, "events": None if events is None else json.dumps(sorted(set(events)))}
        changed = {k: v for k, v in said.items() if v is not None}
        with self.write() as db:
            _one(db, tenant, webhook_id)
            if changed:
                here = sa.update(webhooks).where(webhooks.c.id == webhook_id)
                db.execute(here.values(**changed, updated_at=now()))
                add_audit(db, actor=actor, tenant=tenant, action="webhook.change", subject=webhook_id, detail=changed)
            return _one(db, tenant, webhook_id)

    def rotate_secret(self, tenant: str, webhook_id: str, *, actor: str, keep_old: bool) -> Webhook:
        """The endpoint with a new secret; the old one signs beside it for 24 hours where asked. Raises NotFoundError."""
        with self.write() as db:
            was = _one(db, tenant, webhook_id)
            until = _after(24 * 3600) if keep_old else None
            values = {"secret": new_secret(), "old_secret": was.secret if keep_old else None, "old_secret_until": until}
            here = sa.update(webhooks).where(webhooks.c.id == webhook_id)
            db.execute(here.values(**values, updated_at=now()))
            add_audit(db, actor=actor, tenant=tenant, action="webhook.rotate", subject=webhook_id)
            return _one(db, tenant, webhook_id)

    def delete_webhook(self, tenant: str, webhook_id: str, *, actor: str) -> None:
        """Nothing more is sent there. Raises NotFoundError."""
        with self.write() as db:
            _one(db, tenant, webhook_id)
            db.execute(sa.update(webhooks).where(webhooks.c.id == webhook_id).values(deleted_at=now()))
            add_audit(db, actor=actor, tenant=tenant, action="webhook.delete", subject=webhook_id)

    def tell_once(self, tenant: str, event: str, data: Mapping[str, Any]) -> bool:
        """Owes an event unless the tenant was told the very same before. True when somebody is told now."""
        same = canonical_json(dict(data)).decode()
        mine = sa.select(webhooks.c.id).where(webhooks.c.tenant == tenant)
        query = sa.select(deliveries.c.body).where(deliveries.c.event == event, deliveries.c.webhook_id.in_(mine))
        with self.write() as db:
            if any(canonical_json(json.loads(body)["data"]).decode() == same for body in db.execute(query).scalars()):
                return False
            enqueue(db, tenant, event, data=data)
            return True

    def take_delivery(self) -> Delivery | None:
        """The delivery that is due longest, leased to the caller for LEASE_SECONDS; None when none is due."""
        moment = now()
        with self.write() as db:
            still = (
                deliveries.c.delivered_at.is_(None),
                deliveries.c.given_up_at.is_(None),
                webhooks.c.deleted_at.is_(None),
            )
            query = sa.select(deliveries.c.id).join(webhooks).where(*still, deliveries.c.next_at <= moment)
            taken = db.execute(query.order_by(deliveries.c.next_at).limit(1)).scalar()
            if taken is None:
                return None
            here = sa.update(deliveries).where(deliveries.c.id == taken)
            db.execute(here.values(next_at=_after(LEASE_SECONDS)))
            row = db.execute(sa.select(deliveries).where(deliveries.c.id == taken)).mappings().one()
            target = db.execute(sa.select(webhooks).where(webhooks.c.id == row["webhook_id"])).mappings().one()
            return Delivery(
                id=row["id"], webhook=_read(target), event=row["event"], body=row["body"], attempts=row["attempts"]
            )

    def end_delivery(self, delivery: Delivery, *, error: str | None) -> None:
        """Writes down how a try ended: delivered, to be tried again later, or given up after the last."""
        tried: dict[str, Any] = {"attempts": delivery.attempts + 1, "last_error": error}
        if error is None:
            tried["delivered_at"] = now()
        elif delivery.attempts >= len(WAITS_SECONDS):
            tried["given_up_at"] = now()
        else:
            tried["next_at"] = _after(WAITS_SECONDS[delivery.attempts])
        with self.write() as db:
            db.execute(sa.update(deliveries).where(deliveries.c.id == delivery.id).values(tried))

    def deliveries(self, webhook_id: str, *, limit: int = 50) -> list[dict[str, Any]]:
        """The newest deliveries of an endpoint: what was sent, how often it was tried, what went wrong."""
        query = sa.select(deliveries).where(deliveries.c.webhook_id == webhook_id)
        with self.read() as db:
            return [
                dict(row) for row in db.execute(query.order_by(deliveries.c.created_at.desc()).limit(limit)).mappings()
            ]


def enqueue(db: sa.Connection, tenant: str, event: str, *, data: Mapping[str, Any]) -> None:
    """Owes an event to every endpoint of the tenant that wants it, inside the transaction that makes it true."""
    moment = now()
    for endpoint in _of(db, tenant):
        if event in endpoint.events:
            delivery = f"evt_{secrets.token_hex(12)}"
            db.execute(
                sa.insert(deliveries).values(
                    id=delivery, webhook_id=endpoint.id, event=event, body=body_of(delivery, event, data), attempts=0,
                    next_at=moment, created_at=moment,
                )
            )  # fmt: skip


def body_of(event_id: str, event: str, data: Mapping[str, Any]) -> str:
    """An event as OpenAI's clients read it."""
    said = {"id": event_id, "object": "event", "created_at": int(time.time()), "type": event, "data": dict(data)}
    return json.dumps(said, sort_keys=True)


def new_secret() -> str:
    """`whsec_` and base64 of 32 random bytes (Standard Webhooks)."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _of(db: sa.Connection, tenant: str) -> list[Webhook]:
    query = sa.select(webhooks).where(webhooks.c.tenant == tenant, webhooks.c.deleted_at.is_(None))
    return [_read(row) for row in db.execute(query.order_by(webhooks.c.created_at.desc())).mappings()]


def _one(db: sa.Connection, tenant: str, webhook_id: str) -> Webhook:
    found = next((w for w in _of(db, tenant) if w.id == webhook_id), None)
    if found is None:
        raise NotFoundError(f"no webhook endpoint {webhook_id!r}", cure="list the endpoints of this key")
    return found


def _read(row: Any) -> Webhook:
    values: dict[str, Any] = {k: v for k, v in row.items() if k != "deleted_at"}
    values["events"] = tuple(json.loads(values["events"]))
    return Webhook(**values)


def _after(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds")
