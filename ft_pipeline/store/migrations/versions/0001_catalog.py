"""The first catalog: lineage, stages, deployments, and the index over the manifests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ft_pipeline.store.migrations.rules_0001 import LEGAL, statements

revision = "0001"
down_revision = None


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    _lineage(dialect)
    _stages(dialect)
    _index(dialect)
    for statement in statements(dialect):
        op.get_bind().exec_driver_sql(statement)


def _text(name: str, *rules: sa.ForeignKey, null: bool = False, key: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text, *rules, nullable=null, primary_key=key)


def _number(name: str, *rules: sa.ForeignKey, null: bool = False) -> sa.Column:
    return sa.Column(name, sa.Integer, *rules, nullable=null)


def _to(target: str, ondelete: str | None = None) -> sa.ForeignKey:
    return sa.ForeignKey(target, ondelete=ondelete)


def _hex(dialect: str, *columns: str) -> list[sa.CheckConstraint]:
    """64 lower-case hex digits, stored as text."""
    rule = (
        "typeof({0}) = 'text' AND length({0}) = 64 AND {0} NOT GLOB '*[^0-9a-f]*'"
        if dialect == "sqlite"
        else "{0} ~ '^[0-9a-f]{{64}}$'"
    )
    return [sa.CheckConstraint(rule.format(c), name=f"{c}_is_sha256") for c in columns]


def _lineage(dialect: str) -> None:
    op.create_table(
        "base_models",
        _text("digest", key=True),
        _text("name"),
        _text("created_at"),
        *_hex(dialect, "digest"),
    )
    op.create_table("dataset_versions", _text("digest", key=True), _text("created_at"), *_hex(dialect, "digest"))
    op.create_table(
        "model_versions",
        sa.Column("id", sa.Integer, primary_key=True),
        _text("tenant"),
        _text("name"),
        _number("version"),
        _text("base_digest", _to("base_models.digest")),
        _text("dataset_digest", _to("dataset_versions.digest")),
        _text("adapter_digest"),
        _text("report_digest"),
        _text("recipe_sha256"),
        _text("run_id"),
        _text("code"),
        _text("artifact_type"),
        _number("lora_rank", null=True),
        _number("lora_alpha", null=True),
        _text("lora_modules", null=True),
        _text("created_at"),
        sa.UniqueConstraint("tenant", "name", "version", name="one_row_per_version"),
        sa.UniqueConstraint(
            "tenant", "name", "adapter_digest", "report_digest", name="one_version_per_adapter_and_report"
        ),
        sa.CheckConstraint("version >= 1", name="versions_count_from_one"),
        sa.CheckConstraint("tenant <> '' AND name <> ''", name="a_line_has_a_name"),
        sa.CheckConstraint("artifact_type IN ('lora_adapter', 'full_model')", name="known_artifact_type"),
        sa.CheckConstraint("artifact_type = 'full_model' OR lora_rank >= 1", name="lora_has_a_rank"),
        *_hex(dialect, "base_digest", "dataset_digest", "adapter_digest", "report_digest", "recipe_sha256"),
    )
    op.create_table(
        "attestations",
        sa.Column("model_id", sa.Integer, _to("model_versions.id"), primary_key=True, autoincrement=False),
        _text("registered_digest"),
        _text("created_at"),
        *_hex(dialect, "registered_digest"),
    )
    op.create_table(
        "eval_reports",
        sa.Column("id", sa.Integer, primary_key=True),
        _number("model_id", _to("model_versions.id")),
        _text("base_digest", _to("base_models.digest")),
        _text("suite_sha256"),
        _number("passed"),
        _text("report_digest"),
        _text("created_at"),
        sa.CheckConstraint("passed IN (0, 1)", name="passed_or_not"),
        *_hex(dialect, "base_digest", "suite_sha256", "report_digest"),
    )
    op.create_index("ix_eval_reports_model_id", "eval_reports", ["model_id"])


def _stages(dialect: str) -> None:
    legal = " OR ".join(f"(from_stage = '{a}' AND to_stage = '{b}')" for a, b in LEGAL)
    op.create_table(
        "transitions",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        _number("model_id", _to("model_versions.id")),
        _text("from_stage"),
        _text("to_stage"),
        _number("report_id", _to("eval_reports.id"), null=True),
        _text("actor"),
        _text("approved_by", null=True),
        _text("reason"),
        _text("created_at"),
        _text("previous_sha256"),
        _text("sha256"),
        sa.UniqueConstraint("previous_sha256", name="one_successor"),
        sa.CheckConstraint(legal, name="legal_transition"),
        sa.CheckConstraint(
            "to_stage NOT IN ('staging', 'production') OR report_id IS NOT NULL", name="evidence_is_named"
        ),
        sa.CheckConstraint(
            "to_stage <> 'production' OR (approved_by IS NOT NULL AND approved_by <> '' AND approved_by <> actor)",
            name="approved_by_another",
        ),
        sa.CheckConstraint("actor <> ''", name="somebody_acted"),
        *_hex(dialect, "previous_sha256", "sha256"),
    )
    op.create_index("ix_transitions_model_id", "transitions", ["model_id"])
    op.create_table("pools", _text("id", key=True), _text("base_digest", _to("base_models.digest")))
    op.create_table(
        "deployments",
        _text("pool_id", _to("pools.id")),
        _number("model_id", _to("model_versions.id")),
        _text("created_at"),
        sa.PrimaryKeyConstraint("pool_id", "model_id"),
    )


def _index(dialect: str) -> None:
    op.create_table(
        "artifacts",
        _text("digest", key=True),
        _text("kind"),
        _text("fingerprint"),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        _text("counts"),
        _text("created_at"),
        sa.UniqueConstraint("kind", "fingerprint", name="one_artifact_per_place"),
        *_hex(dialect, "digest", "fingerprint"),
    )
    op.create_table(
        "edges",
        _text("child", _to("artifacts.digest", ondelete="CASCADE")),
        _text("role"),
        _text("parent"),
        sa.PrimaryKeyConstraint("child", "role"),
        *_hex(dialect, "parent"),
    )
    op.create_index("ix_edges_parent", "edges", ["parent"])
    op.create_table(
        "heads",
        _text("recipe_key"),
        _text("asset"),
        _text("kind"),
        _text("fingerprint"),
        _text("digest"),
        _text("run_id", null=True),
        _text("updated_at"),
        sa.PrimaryKeyConstraint("recipe_key", "asset"),
        *_hex(dialect, "fingerprint", "digest"),
    )
    op.create_table(
        "pins",
        _text("recipe_key"),
        _text("uri"),
        _text("revision"),
        _text("created_at"),
        sa.PrimaryKeyConstraint("recipe_key", "uri"),
    )
