"""The audit log: who did what, on a line each, in a chain of hashes over all tenants. Lines are only added; the database refuses the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import IntegrityError, NotFoundError
from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.fingerprint import canonical_json, sha256_json
from ft_pipeline.store.migrations.rules_0001 import GENESIS
from ft_pipeline.store.platform.tables import audit


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditLine:
    """One act."""

    seq: int
    """From 1, without a gap, over all tenants."""
    tenant: str | None
    """Whose act it was, or whom it concerned; None for the platform's own."""
    actor: str
    """`tenant/key name`, or a person of the command line."""
    action: str
    """noun.verb: `key.create`, `job.submit`."""
    subject: str
    """What it was done to: an id or a name."""
    detail: Mapping[str, Any]
    created_at: str
    previous_sha256: str
    sha256: str


class Audit(Database):
    """What was done, append-only."""

    def audit(
        self, *, actor: str, tenant: str | None, action: str, subject: str, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Adds a line, in a transaction of its own; `add_audit` adds one to a transaction that runs."""
        with self.write() as db:
            add_audit(db, actor=actor, tenant=tenant, action=action, subject=subject, detail=detail)

    def audit_lines(
        self, *, tenant: str | None = None, after: int | None = None, limit: int | None = None
    ) -> list[AuditLine]:
        """Lines, newest first; `after` is the seq of the last one of the page before. Raises NotFoundError where it is not the tenant's."""
        query = sa.select(audit).order_by(audit.c.seq.desc()).limit(limit)
        if tenant is not None:
            query = query.where(audit.c.tenant == tenant)
        with self.read() as db:
            if after is not None:
                own = [audit.c.seq == after, *([audit.c.tenant == tenant] if tenant is not None else [])]
                if db.execute(sa.select(audit.c.seq).where(*own)).first() is None:
                    raise NotFoundError(f"no line {after} in the audit log", cure="take `after` from the page before")
                query = query.where(audit.c.seq < after)
            return [_read(row) for row in db.execute(query).mappings()]

    def verify_audit(self) -> tuple[int, str]:
        """Number of lines and sha256 of the last one, every line re-hashed. Raises IntegrityError naming the first that is wrong.

        A chain cannot show that its end was cut off: who keeps the last sha256 elsewhere sees that too.
        """
        before, number = GENESIS, 0
        with self.snapshot() as db:
            for number, row in enumerate(db.execute(sa.select(audit).order_by(audit.c.seq)), start=1):
                *values, sealed = row
                if (row.seq, row.previous_sha256, sealed) != (number, before, sha256_json(values)):
                    raise IntegrityError(
                        f"line {row.seq} of the audit log ({row.action} {row.subject} by {row.actor}) was changed, or the one before it is missing",
                        why="Its sha256 does not cover what it says and the line before it: who did what can no longer be trusted.",
                        cure="restore the database from a backup and compare",
                    )
                before = sealed
        return number, before


def add_audit(
    db: sa.Connection, *, actor: str, tenant: str | None, action: str, subject: str, detail: Mapping[str, Any] | None = None
) -> None:  # fmt: skip
    """Adds a line inside the transaction of the act itself, so that there is no act without one."""
    newest = db.execute(sa.select(audit.c.seq, audit.c.sha256).order_by(audit.c.seq.desc()).limit(1)).first()
    line = {
        "seq": newest.seq + 1 if newest else 1,
        "tenant": tenant,
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": canonical_json(dict(detail or {})).decode(),
        "created_at": now(),
        "previous_sha256": newest.sha256 if newest else GENESIS,
    }
    db.execute(sa.insert(audit).values(**line, sha256=sha256_json(list(line.values()))))


def _read(row: Any) -> AuditLine:
    values = dict(row)
    values["detail"] = json.loads(row["detail"])
    return AuditLine(**values)
