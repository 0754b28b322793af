"""What alembic runs: the migrations on the connection and transaction that `store/catalog_database.py` hands over."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
