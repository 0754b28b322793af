"""What the database refuses from revision 0002 on: the journal, its seals and takedowns only grow, and nobody decides on an old snapshot."""
# ruff: noqa: S608 - DDL made of constants of this file

from __future__ import annotations

from collections.abc import Iterator

from ft_pipeline.store.migrations.rules_0001 import GENESIS, Rule, append_only, trigger

APPEND_ONLY = ("journal", "seals", "takedowns")
JOURNALED = (
    "base_models", "dataset_versions", "model_versions", "attestations", "eval_reports", "transitions", "pools", "deployments",
    "heads", "pins",
)  # fmt: skip
"""Tables whose every row is in the journal; `artifacts` and `edges` follow from the manifests and are compared with those."""
DECISIONS = ("transitions", "deployments", "pools", "takedowns")

_OF_A_FORGOTTEN_ROW = (
    "EXISTS (SELECT 1 FROM takedown_models a JOIN takedowns t ON t.id = a.takedown_id JOIN takedowns c ON c.row_key = t.row_key"
    " WHERE a.model_id = NEW.model_id AND c.event = 'completed')"
)

RULES = (
    Rule(
        name="not_forgotten", table="deployments", event="INSERT", when=_OF_A_FORGOTTEN_ROW,
        message="the version was made from a row that was taken down",
    ),
    Rule(
        name="not_forgotten", table="transitions", event="INSERT",
        when=f"NEW.to_stage = 'production' AND {_OF_A_FORGOTTEN_ROW}",
        message="the version was made from a row that was taken down",
    ),
    Rule(
        name="chain", table="journal", event="INSERT",
        when="NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM journal) OR NEW.previous_sha256 <>"
        f" COALESCE((SELECT sha256 FROM journal ORDER BY seq DESC LIMIT 1), '{GENESIS}')",
        message="a line of the journal must continue the hash chain",
    ),
    Rule(
        name="chain", table="seals", event="INSERT",
        when="NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM seals) OR NOT EXISTS"
        " (SELECT 1 FROM journal WHERE seq = NEW.journal_seq AND sha256 = NEW.journal_sha256)",
        message="a seal is of a line of the journal",
    ),
    Rule(
        name="asked_first", table="takedowns", event="INSERT",
        when="NEW.event = 'completed' AND NOT EXISTS"
        " (SELECT 1 FROM takedowns WHERE row_key = NEW.row_key AND event = 'requested')",
        message="a takedown is completed after it was requested",
    ),
    Rule(
        name="gone_first", table="takedowns", event="INSERT",
        when="NEW.event = 'completed' AND EXISTS (SELECT 1 FROM takedowns t JOIN takedown_models a ON a.takedown_id = t.id"
        " JOIN deployments d ON d.model_id = a.model_id WHERE t.row_key = NEW.row_key)",
        message="a version that was made from the row is deployed",
    ),
)  # fmt: skip


def statements(dialect: str) -> Iterator[str]:
    """The CREATE statements of every rule for `sqlite` or `postgresql`."""
    for table in (*APPEND_ONLY, "takedown_models"):
        yield from append_only(dialect, table)
    for rule in RULES:
        yield from trigger(dialect, rule)
    if dialect == "postgresql":
        yield from _fresh_snapshots()


def _fresh_snapshots() -> Iterator[str]:
    """The lock of the rules helps only who reads after he waited: repeatable read keeps the snapshot from before."""
    yield (
        "CREATE FUNCTION ft_read_committed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n"
        "IF current_setting('transaction_isolation') <> 'read committed' THEN\n"
        "RAISE EXCEPTION 'ft: decisions are taken at the isolation level read committed' USING ERRCODE = '23000'; END IF;\n"
        "RETURN NULL; END $$"
    )
    for table in DECISIONS:
        yield (
            f"CREATE TRIGGER {table}_a_read_committed BEFORE INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION ft_read_committed()"
        )
