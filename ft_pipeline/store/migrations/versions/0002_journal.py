"""A journal of every row that says who stands where, seals over it, and takedowns of rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ft_pipeline.store.fingerprint import canonical_json, sha256_json
from ft_pipeline.store.migrations.rules_0001 import GENESIS
from ft_pipeline.store.migrations.rules_0002 import JOURNALED, statements

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    _tables(dialect)
    _adopt()
    for statement in statements(dialect):
        op.get_bind().exec_driver_sql(statement)


def _text(name: str, null: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=null)


def _hex(dialect: str, *columns: str) -> list[sa.CheckConstraint]:
    rule = (
        "typeof({0}) = 'text' AND length({0}) = 64 AND {0} NOT GLOB '*[^0-9a-f]*'"
        if dialect == "sqlite"
        else "{0} ~ '^[0-9a-f]{{64}}$'"
    )
    return [sa.CheckConstraint(rule.format(c), name=f"{c}_is_sha256") for c in columns]


def _tables(dialect: str) -> None:
    op.create_table(
        "journal",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        _text("table_name"),
        _text("row_key"),
        _text("content", null=True),
        _text("created_at"),
        _text("previous_sha256"),
        _text("sha256"),
        *_hex(dialect, "previous_sha256", "sha256"),
    )
    op.create_table(
        "seals",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("journal_seq", sa.Integer, sa.ForeignKey("journal.seq"), nullable=False),
        _text("journal_sha256"),
        _text("envelope"),
        _text("created_at"),
        *_hex(dialect, "journal_sha256"),
    )
    op.create_table(
        "takedowns",
        sa.Column("id", sa.Integer, primary_key=True),
        _text("row_key"),
        _text("event"),
        _text("actor"),
        _text("reason"),
        _text("envelope"),
        _text("created_at"),
        sa.CheckConstraint("event IN ('requested', 'completed')", name="known_event"),
        sa.CheckConstraint("actor <> '' AND reason <> ''", name="who_and_why"),
    )
    op.create_index("ix_takedowns_row_key", "takedowns", ["row_key"])
    op.create_table(
        "takedown_models",
        sa.Column("takedown_id", sa.Integer, sa.ForeignKey("takedowns.id"), nullable=False),
        sa.Column("model_id", sa.Integer, sa.ForeignKey("model_versions.id"), nullable=False),
        sa.PrimaryKeyConstraint("takedown_id", "model_id"),
    )


def _adopt() -> None:
    """The rows of a catalog that was there before the journal, as they are now."""
    db, before, seq = op.get_bind(), GENESIS, 0
    found = sa.MetaData()
    for name in JOURNALED:
        table = sa.Table(name, found, autoload_with=db)
        keys = list(table.primary_key)
        for row in db.execute(sa.select(table).order_by(*keys)).mappings().all():
            seq += 1
            line = {
                "seq": seq,
                "table_name": name,
                "row_key": canonical_json([row[k.name] for k in keys]).decode(),
                "content": canonical_json(dict(row)).decode(),
                "created_at": "adopted by revision 0002",
                "previous_sha256": before,
            }
            before = sha256_json(list(line.values()))
            db.execute(
                sa.text(
                    "INSERT INTO journal (seq, table_name, row_key, content, created_at, previous_sha256, sha256)"
                    " VALUES (:seq, :table_name, :row_key, :content, :created_at, :previous_sha256, :sha256)"
                ),
                line | {"sha256": before},
            )
