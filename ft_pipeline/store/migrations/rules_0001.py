"""What the database itself refuses in revision 0001, whoever writes: append-only tables, stages, evidence, deployments.

Each rule is a condition in SQL that both SQLite and PostgreSQL read; a row for which it holds is refused with the message.
"""
# ruff: noqa: S608 - DDL made of constants of this file

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LOCK = 731_002
"""PostgreSQL advisory lock: one writer at a time decides on stages, reports and deployments (SQLite has one writer)."""
APPEND_ONLY = ("base_models", "dataset_versions", "model_versions", "attestations", "eval_reports", "transitions")
LEGAL = (
    ("none", "dev"), ("dev", "staging"), ("staging", "production"), ("production", "archived"),
    ("dev", "archived"), ("staging", "archived"), ("archived", "production"),
)  # fmt: skip
GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Refuses an event on a table."""

    name: str
    table: str
    event: str
    when: str
    message: str


def _stage(model: str) -> str:
    newest = f"SELECT to_stage FROM transitions WHERE model_id = {model} ORDER BY seq DESC LIMIT 1"
    return f"COALESCE(({newest}), 'none')"


def _production_suite(model: str) -> str:
    return (
        f"(SELECT r.suite_sha256 FROM transitions t JOIN eval_reports r ON r.id = t.report_id"
        f" WHERE t.model_id = {model} AND t.to_stage = 'production' ORDER BY t.seq DESC LIMIT 1)"
    )


def _newest_passes(model: str, base: str, suite: str) -> str:
    newest = (
        f"SELECT passed FROM eval_reports WHERE model_id = {model} AND base_digest = {base}"
        f" AND suite_sha256 = {suite} ORDER BY id DESC LIMIT 1"
    )
    return f"COALESCE(({newest}), 0) = 1"


_REPORT = (
    "FROM eval_reports r JOIN model_versions m ON m.id = r.model_id WHERE r.id = NEW.report_id AND m.id = NEW.model_id"
)

RULES = (
    Rule(
        name="chain", table="transitions", event="INSERT",
        when="NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM transitions) OR NEW.previous_sha256 <>"
        f" COALESCE((SELECT sha256 FROM transitions ORDER BY seq DESC LIMIT 1), '{GENESIS}')",
        message="a transition must continue the hash chain",
    ),
    Rule(
        name="current_stage", table="transitions", event="INSERT",
        when=f"NEW.from_stage <> {_stage('NEW.model_id')}",
        message="from_stage is not the current stage",
    ),
    Rule(
        name="evidence", table="transitions", event="INSERT",
        when="NEW.to_stage IN ('staging', 'production') AND NOT EXISTS"
        f" (SELECT 1 {_REPORT} AND r.base_digest = m.base_digest AND r.passed = 1"
        f" AND {_newest_passes('m.id', 'm.base_digest', 'r.suite_sha256')})",
        message="the newest report of this model on its base did not pass",
    ),
    Rule(
        name="one_production", table="transitions", event="INSERT",
        when="NEW.to_stage = 'production' AND EXISTS (SELECT 1 FROM model_versions m JOIN model_versions o"
        " ON o.tenant = m.tenant AND o.name = m.name AND o.id <> m.id"
        f" WHERE m.id = NEW.model_id AND {_stage('o.id')} = 'production')",
        message="another version of this model line is in production",
    ),
    Rule(
        name="rollback", table="transitions", event="INSERT",
        when="NEW.from_stage = 'archived' AND NEW.to_stage = 'production' AND NOT EXISTS"
        " (SELECT 1 FROM transitions WHERE model_id = NEW.model_id AND to_stage = 'production')",
        message="a rollback goes back to what was in production once",
    ),
    Rule(
        name="not_while_deployed", table="transitions", event="INSERT",
        when="NEW.to_stage = 'archived' AND EXISTS (SELECT 1 FROM deployments WHERE model_id = NEW.model_id)",
        message="a deployed version cannot be archived",
    ),
    Rule(
        name="deployable", table="deployments", event="INSERT",
        when=f"{_stage('NEW.model_id')} <> 'production' OR NOT "
        + _newest_passes(
            "NEW.model_id", "(SELECT base_digest FROM pools WHERE id = NEW.pool_id)", _production_suite("NEW.model_id")
        ),
        message="only a production version whose newest report on the pool's base passed can be deployed",
    ),
    Rule(
        name="no_swap", table="deployments", event="UPDATE", when="1 = 1",
        message="a deployment is never changed: undeploy and deploy",
    ),
    Rule(
        name="pool_base", table="pools", event="UPDATE",
        when="NEW.base_digest <> OLD.base_digest AND EXISTS (SELECT 1 FROM deployments d WHERE d.pool_id = OLD.id AND NOT "
        + _newest_passes("d.model_id", "NEW.base_digest", _production_suite("d.model_id")) + ")",
        message="a deployed version has no passing report on the new base",
    ),
    Rule(  # INSERT OR REPLACE of SQLite would change the base by deleting the row
        name="pool_in_use", table="pools", event="DELETE",
        when="EXISTS (SELECT 1 FROM deployments WHERE pool_id = OLD.id)",
        message="a pool with deployments cannot be deleted",
    ),
)  # fmt: skip


def statements(dialect: str) -> Iterator[str]:
    """The CREATE statements of every rule for `sqlite` or `postgresql`."""
    for table in APPEND_ONLY:
        yield from append_only(dialect, table)
    for rule in RULES:
        yield from trigger(dialect, rule)


def append_only(dialect: str, table: str) -> Iterator[str]:
    """The CREATE statements by which a table only grows."""
    for event in ("UPDATE", "DELETE"):
        rule = Rule(name="append_only", table=table, event=event, when="1 = 1", message=f"{table} is append-only")
        yield from trigger(dialect, rule)
    if dialect == "postgresql":
        yield _no_truncate(table)


def trigger(dialect: str, rule: Rule) -> Iterator[str]:
    """The CREATE statements of one rule."""
    name = f"{rule.table}_{rule.event.lower()}_{rule.name}"
    if dialect == "sqlite":
        yield (
            f"CREATE TRIGGER {name} BEFORE {rule.event} ON {rule.table} FOR EACH ROW WHEN {rule.when}\n"
            f"BEGIN SELECT RAISE(ABORT, '{_quoted(rule.message)}'); END"
        )
        return
    row = "OLD" if rule.event == "DELETE" else "NEW"
    yield (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n"
        f"PERFORM pg_advisory_xact_lock({LOCK});\n"
        f"IF {rule.when} THEN RAISE EXCEPTION '{_quoted(rule.message)}' USING ERRCODE = '23000'; END IF;\n"
        f"RETURN {row}; END $$"
    )
    yield f"CREATE TRIGGER {name} BEFORE {rule.event} ON {rule.table} FOR EACH ROW EXECUTE FUNCTION {name}()"


def _no_truncate(table: str) -> str:
    function = f"{table}_update_append_only"
    return (
        f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
    )


def _quoted(message: str) -> str:
    return "ft: " + message.replace("'", "''")
