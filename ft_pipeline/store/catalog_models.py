"""Model versions and their evaluation reports: rows are added, never changed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import DriftError, NotFoundError, did_you_mean
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.catalog_journal import Journal, written
from ft_pipeline.store.catalog_rows import ModelName, ModelVersion, NewModel, Report, parse_model_name, require_sha256
from ft_pipeline.store.catalog_tables import (
    attestations,
    base_models,
    dataset_versions,
    eval_reports,
    model_versions,
    transitions,
)


class ModelVersions(Journal):
    """The versions of every model line."""

    def register(self, new: NewModel) -> ModelVersion:
        """The version of this adapter and report in its line: the next number, or the one it already has. Its stage is `none`."""
        row: dict[str, Any] = asdict(new) | {"created_at": now()}
        row["lora_modules"] = None if new.lora_modules is None else json.dumps(_names(new.lora_modules))
        same = [model_versions.c[c] == row[c] for c in ("tenant", "name", "adapter_digest", "report_digest")]
        with self.write() as db:
            known = db.execute(sa.select(model_versions.c.id).where(*same)).scalar()
            if known is None:
                ensure(db, base_models, digest=new.base_digest, name="", created_at=row["created_at"])
                ensure(db, dataset_versions, digest=new.dataset_digest, created_at=row["created_at"])
                row["version"] = _next_version(db, new)
                known = _insert(db, model_versions, row)
            return version_of(db, known)

    def attest(self, model_id: int, registered_digest: str) -> None:
        """Records the registered_model artifact of a version, once. Raises DriftError when it has another."""
        require_sha256("registered_digest", registered_digest)
        row = {"model_id": model_id, "registered_digest": registered_digest, "created_at": now()}
        with self.write() as db:
            model = version_of(db, model_id)
            if model.registered_digest is None:
                db.execute(sa.insert(attestations).values(row))
                written(db, attestations, model_id)
            elif model.registered_digest != registered_digest:
                raise DriftError(
                    f"{model.label} is attested as {model.registered_digest[:12]}, not {registered_digest[:12]}",
                    why="A version is attested once: its statement is signed over exact bytes.",
                    cure="register the changed model again; it gets its own version",
                )

    def model(self, name: str) -> ModelVersion:
        """The version that a name means: `t/n@3`, `t/n@latest`, `t/n:STAGE`, or `t/n` for production, else the newest.

        Raises UserError for what is not a name, NotFoundError with the nearest names.
        """
        parsed = parse_model_name(name)
        line = [model_versions.c.tenant == parsed.tenant, model_versions.c.name == parsed.name]
        with self.read() as db:
            found = _named(_versions(db, *line), parsed)
            known = [v.label for v in _versions(db)] if found is None else []
        if found is not None:
            return found
        of_line = [label for label in known if label.split("@")[0] == f"{parsed.tenant}/{parsed.name}"]
        raise NotFoundError(
            f"no model {name}: {did_you_mean(name, of_line or {label.split('@')[0] for label in known})}",
            cure="`ft-pipeline models` lists them with their stages",
        )

    def model_by_id(self, model_id: int) -> ModelVersion:
        """The version with an id. Raises NotFoundError."""
        with self.read() as db:
            return version_of(db, model_id)

    def models(self, tenant: str | None = None) -> list[ModelVersion]:
        """Every version, by line and number."""
        with self.read() as db:
            return _versions(db, *([] if tenant is None else [model_versions.c.tenant == tenant]))

    def add_report(  # noqa: PLR0917 - the columns of one row, in order
        self, model_id: int, base_digest: str, suite_sha256: str, passed: bool, report_digest: str
    ) -> int:
        """Records what an evaluation said of a version on a base. Returns the report's id, the same for a repetition."""
        row = {"model_id": model_id, "base_digest": base_digest, "suite_sha256": suite_sha256}
        for field, value in {**row, "report_digest": report_digest}.items():
            if field != "model_id":
                require_sha256(field, str(value))
        with self.write() as db:
            version_of(db, model_id)
            newest = newest_report(db, row)
            if newest and newest.report_digest == report_digest and newest.passed == int(passed):
                return newest.id
            ensure(db, base_models, digest=base_digest, name="", created_at=now())
            values = row | {"passed": int(passed), "report_digest": report_digest, "created_at": now()}
            return _insert(db, eval_reports, values)

    def reports(self, model_id: int) -> list[Report]:
        """What was said of a version, oldest first: the newest one on a base says whether it is certified there."""
        query = sa.select(eval_reports).where(eval_reports.c.model_id == model_id).order_by(eval_reports.c.id)
        with self.read() as db:
            return [
                Report(
                    base_digest=row.base_digest, suite_sha256=row.suite_sha256, passed=row.passed == 1,
                    report_digest=row.report_digest, created_at=row.created_at,
                )
                for row in db.execute(query)
            ]  # fmt: skip


def stage_column(model_id: Any) -> Any:
    """SQL of the current stage of a version: where its newest transition led."""
    newest = sa.select(transitions.c.to_stage).where(transitions.c.model_id == model_id)
    return sa.func.coalesce(newest.order_by(transitions.c.seq.desc()).limit(1).scalar_subquery(), "none")


def version_of(db: sa.Connection, model_id: int) -> ModelVersion:
    """The version with an id. Raises NotFoundError."""
    found = _versions(db, model_versions.c.id == model_id)
    if not found:
        raise NotFoundError(f"no model version with id {model_id}", cure="`ft-pipeline models` lists them")
    return found[0]


def newest_report(db: sa.Connection, same: dict[str, Any]) -> Any:
    """The newest evaluation report whose columns have the values, or None."""
    query = sa.select(eval_reports).where(*(eval_reports.c[name] == value for name, value in same.items()))
    return db.execute(query.order_by(eval_reports.c.id.desc()).limit(1)).first()


def _versions(db: sa.Connection, *where: Any) -> list[ModelVersion]:
    query = (
        sa.select(model_versions, attestations.c.registered_digest, stage_column(model_versions.c.id).label("stage"))
        .outerjoin(attestations, attestations.c.model_id == model_versions.c.id)
        .where(*where)
        .order_by(model_versions.c.tenant, model_versions.c.name, model_versions.c.version)
    )
    return [_version(row) for row in db.execute(query).mappings()]


def _version(row: Any) -> ModelVersion:
    values: dict[str, Any] = dict(row)
    if values["lora_modules"] is not None:
        values["lora_modules"] = tuple(json.loads(values["lora_modules"]))
    return ModelVersion(**values)


def _named(versions: list[ModelVersion], name: ModelName) -> ModelVersion | None:
    if isinstance(name.version, int):
        return next((v for v in versions if v.version == name.version), None)
    if name.stage:
        return next((v for v in reversed(versions) if v.stage == name.stage), None)
    live = [] if name.version == "latest" else [v for v in versions if v.stage == "production"]
    return (live or versions or [None])[-1]


def _next_version(db: sa.Connection, new: NewModel) -> int:
    highest = sa.select(sa.func.max(model_versions.c.version)).where(
        model_versions.c.tenant == new.tenant, model_versions.c.name == new.name
    )
    return (db.execute(highest).scalar() or 0) + 1


def _insert(db: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    made = db.execute(sa.insert(table).values(row).returning(table.c.id)).scalar_one()
    written(db, table, made)
    return made


def ensure(db: sa.Connection, table: sa.Table, **row: str) -> None:
    """Records a digest once."""
    if not db.execute(sa.select(table.c.digest).where(table.c.digest == row["digest"])).first():
        db.execute(sa.insert(table).values(row))
        written(db, table, row["digest"])


def _names(modules: Any) -> list[str]:
    return [modules] if isinstance(modules, str) else sorted(modules)
