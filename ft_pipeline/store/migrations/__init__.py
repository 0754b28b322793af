"""Alembic migrations of the catalog, run when it is opened. HEAD is the newest revision."""

HEAD = "0003"
