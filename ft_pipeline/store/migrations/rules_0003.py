"""What the database refuses from revision 0003 on: the audit log only grows, and what a job did is not rewritten."""

# ruff: noqa: S608 - DDL made of constants of this file

from __future__ import annotations

from collections.abc import Iterator

from ft_pipeline.store.migrations.rules_0001 import GENESIS, Rule, append_only, trigger

APPEND_ONLY = ("audit", "job_events")
ENDED = "('succeeded', 'failed', 'cancelled')"

RULES = (
    Rule(
        name="chain", table="audit", event="INSERT",
        when="NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM audit) OR NEW.previous_sha256 <>"
        f" COALESCE((SELECT sha256 FROM audit ORDER BY seq DESC LIMIT 1), '{GENESIS}')",
        message="a line of the audit log must continue the hash chain",
    ),
    Rule(
        name="ended", table="jobs", event="UPDATE",
        when=f"OLD.status IN {ENDED} AND NEW.status <> OLD.status",
        message="a job that has ended stays as it ended",
    ),
    Rule(
        name="same_job", table="jobs", event="UPDATE",
        when="NEW.id <> OLD.id OR NEW.tenant <> OLD.tenant OR NEW.line <> OLD.line OR NEW.recipe <> OLD.recipe",
        message="a job keeps its tenant, its line and its recipe",
    ),
)  # fmt: skip


def statements(dialect: str) -> Iterator[str]:
    """The CREATE statements of every rule for `sqlite` or `postgresql`."""
    for table in APPEND_ONLY:
        yield from append_only(dialect, table)
    for rule in RULES:
        yield from trigger(dialect, rule)
