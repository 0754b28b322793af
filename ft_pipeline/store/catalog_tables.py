"""The catalog's tables, for queries. What the database itself refuses (checks, triggers) is in migrations/."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()


def _text(name: str, *rules: ForeignKey, nullable: bool = False, index: bool = False) -> Column[str]:
    return Column(name, Text, *rules, nullable=nullable, index=index or None)


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True)


base_models = Table(
    "base_models", metadata, _key("digest"), _text("name"), _text("created_at")
)  # fmt: skip
dataset_versions = Table("dataset_versions", metadata, _key("digest"), _text("created_at"))
model_versions = Table(
    "model_versions", metadata,
    Column("id", Integer, primary_key=True),
    _text("tenant"),
    _text("name"),
    Column("version", Integer, nullable=False),
    _text("base_digest", ForeignKey("base_models.digest")),
    _text("dataset_digest", ForeignKey("dataset_versions.digest")),
    _text("adapter_digest"),
    _text("report_digest"),
    _text("recipe_sha256"),
    _text("run_id"),
    _text("code"),
    _text("artifact_type"),
    Column("lora_rank", Integer),
    Column("lora_alpha", Integer),
    Column("lora_modules", Text),
    _text("created_at"),
    UniqueConstraint("tenant", "name", "version", name="one_row_per_version"),
    UniqueConstraint("tenant", "name", "adapter_digest", "report_digest", name="one_version_per_adapter_and_report"),
)  # fmt: skip
attestations = Table(
    "attestations", metadata,
    Column("model_id", Integer, ForeignKey("model_versions.id"), primary_key=True, autoincrement=False),
    _text("registered_digest"),
    _text("created_at"),
)  # fmt: skip
eval_reports = Table(
    "eval_reports", metadata,
    Column("id", Integer, primary_key=True),
    Column("model_id", Integer, ForeignKey("model_versions.id"), nullable=False, index=True),
    _text("base_digest", ForeignKey("base_models.digest")),
    _text("suite_sha256"),
    Column("passed", Integer, nullable=False),
    _text("report_digest"),
    _text("created_at"),
)  # fmt: skip
transitions = Table(
    "transitions", metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("model_id", Integer, ForeignKey("model_versions.id"), nullable=False, index=True),
    _text("from_stage"),
    _text("to_stage"),
    Column("report_id", Integer, ForeignKey("eval_reports.id")),
    _text("actor"),
    _text("approved_by", nullable=True),
    _text("reason"),
    _text("created_at"),
    _text("previous_sha256"),
    _text("sha256"),
    UniqueConstraint("previous_sha256", name="one_successor"),
)  # fmt: skip
pools = Table("pools", metadata, _key("id"), _text("base_digest", ForeignKey("base_models.digest")))
deployments = Table(
    "deployments", metadata,
    _text("pool_id", ForeignKey("pools.id")),
    Column("model_id", Integer, ForeignKey("model_versions.id"), nullable=False),
    _text("created_at"),
    PrimaryKeyConstraint("pool_id", "model_id"),
)  # fmt: skip
artifacts = Table(
    "artifacts", metadata,
    _key("digest"),
    _text("kind"),
    _text("fingerprint"),
    Column("size_bytes", BigInteger, nullable=False),
    _text("counts"),
    _text("created_at"),
    UniqueConstraint("kind", "fingerprint", name="one_artifact_per_place"),
)  # fmt: skip
edges = Table(
    "edges", metadata,
    _text("child", ForeignKey("artifacts.digest", ondelete="CASCADE")),
    _text("role"),
    _text("parent", index=True),
    PrimaryKeyConstraint("child", "role"),
)  # fmt: skip
heads = Table(
    "heads", metadata,
    _text("recipe_key"),
    _text("asset"),
    _text("kind"),
    _text("fingerprint"),
    _text("digest"),
    _text("run_id", nullable=True),
    _text("updated_at"),
    PrimaryKeyConstraint("recipe_key", "asset"),
)  # fmt: skip
pins = Table(
    "pins", metadata,
    _text("recipe_key"),
    _text("uri"),
    _text("revision"),
    _text("created_at"),
    PrimaryKeyConstraint("recipe_key", "uri"),
)  # fmt: skip
journal = Table(
    "journal", metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _text("table_name"),
    _text("row_key"),
    _text("content", nullable=True),
    _text("created_at"),
    _text("previous_sha256"),
    _text("sha256"),
)  # fmt: skip
"""What was written into the other tables, line by line; content is the row as JSON, NULL when it was taken away."""
seals = Table(
    "seals", metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("journal_seq", Integer, ForeignKey("journal.seq"), nullable=False),
    _text("journal_sha256"),
    _text("envelope"),
    _text("created_at"),
)  # fmt: skip
takedowns = Table(
    "takedowns", metadata,
    Column("id", Integer, primary_key=True),
    _text("row_key", index=True),
    _text("event"),
    _text("actor"),
    _text("reason"),
    _text("envelope"),
    _text("created_at"),
)  # fmt: skip
"""row_key: `r` and 16 hex digits, from the bytes of the row. event: requested or completed."""
takedown_models = Table(
    "takedown_models", metadata,
    Column("takedown_id", Integer, ForeignKey("takedowns.id"), nullable=False),
    Column("model_id", Integer, ForeignKey("model_versions.id"), nullable=False),
    PrimaryKeyConstraint("takedown_id", "model_id"),
)  # fmt: skip
"""The versions that a takedown found to be made from the row."""
