"""Takedowns: rows that may not be used any more, the versions that were made from them, and when none of those answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.catalog_journal import written
from ft_pipeline.store.catalog_models import version_of
from ft_pipeline.store.catalog_rows import ModelVersion
from ft_pipeline.store.catalog_tables import takedown_models, takedowns

REQUESTED, COMPLETED = "requested", "completed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Takedown:
    """One event of one row's takedown."""

    id: int
    row_key: str
    """`r` and 16 hex digits: of the row's bytes."""
    event: str
    actor: str
    reason: str
    created_at: str
    envelope: str
    """DSSE envelope of what was signed."""
    models: tuple[ModelVersion, ...]
    """The versions that were made from the row."""


class Takedowns(Database):
    """What must be forgotten, and by whom that was asked."""

    def add_takedown(
        self, rows: Sequence[str], model_ids: Sequence[int], *, event: str, actor: str, reason: str,
        sign: Callable[[dict[str, Any]], str],
    ) -> None:  # fmt: skip
        """Records an event for each row key. `sign` gets row_key, event, actor, reason, created_at and gives an envelope."""
        with self.write() as db:
            for key in rows:
                row = {"row_key": key, "event": event, "actor": actor, "reason": reason, "created_at": now()}
                values = {**row, "envelope": sign(row)}
                made = db.execute(sa.insert(takedowns).values(values).returning(takedowns.c.id)).scalar_one()
                written(db, takedowns, made)
                for model_id in sorted(set(model_ids)):
                    db.execute(sa.insert(takedown_models).values(takedown_id=made, model_id=model_id))
                    written(db, takedown_models, made, model_id)

    def takedowns(self) -> list[Takedown]:
        """Every event, oldest first."""
        with self.snapshot() as db:
            return [_takedown(db, row) for row in db.execute(sa.select(takedowns).order_by(takedowns.c.id)).all()]

    def forgotten(self) -> tuple[str, ...]:
        """The row keys that may not be used, sorted."""
        with self.read() as db:
            return tuple(sorted(db.execute(sa.select(takedowns.c.row_key).distinct()).scalars()))


def _takedown(db: sa.Connection, row: Any) -> Takedown:
    query = sa.select(takedown_models.c.model_id).where(takedown_models.c.takedown_id == row.id)
    models = tuple(version_of(db, i) for i in db.execute(query.order_by(takedown_models.c.model_id)).scalars().all())
    return Takedown(**row._asdict(), models=models)
