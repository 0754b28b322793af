"""The platform: tenants, keys, files, jobs with events and intervals, webhooks, usage, audit."""

from __future__ import annotations

from alembic import op

from ft_pipeline.store.migrations.rules_0003 import statements
from ft_pipeline.store.platform.tables import TABLES, metadata

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    db = op.get_bind()
    metadata.create_all(db, tables=list(TABLES))
    for statement in statements(db.dialect.name):
        db.exec_driver_sql(statement)
