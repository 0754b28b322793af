"""Answers of models by tenant, version and day: one row each, counted up."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite

from ft_pipeline.store.catalog_database import Database, now
from ft_pipeline.store.platform.tables import usage


class Usage(Database):
    """What was answered."""

    def add_usage(self, tenant: str, model: str, *, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """Counts one answer to today's row (UTC)."""
        row = {"tenant": tenant, "model": model, "day": now()[:10], "requests": 1, "prompt_tokens": prompt_tokens,
               "completion_tokens": completion_tokens, "seconds": seconds}  # fmt: skip
        with self.write() as db:
            new = (postgresql if db.dialect.name == "postgresql" else sqlite).insert(usage).values(**row)
            counted = ("requests", "prompt_tokens", "completion_tokens", "seconds")
            more = {name: usage.c[name] + new.excluded[name] for name in counted}
            db.execute(new.on_conflict_do_update(index_elements=["tenant", "model", "day"], set_=more))
