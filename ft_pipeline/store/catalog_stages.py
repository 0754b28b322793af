"""Stages, their hash-chained history, pools and deployments. The database refuses the same again by triggers (migrations/)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import GateRefused, IntegrityError, NotFoundError, UserError, did_you_mean
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.catalog_journal import require_rows, written
from ft_pipeline.store.catalog_models import ModelVersions, ensure, newest_report, stage_column, version_of
from ft_pipeline.store.catalog_rows import NEXT, STAGES, ModelVersion, Transition, parse_model_name, require_sha256
from ft_pipeline.store.catalog_tables import base_models, deployments, eval_reports, model_versions, pools, transitions
from ft_pipeline.store.migrations.rules_0001 import GENESIS


class Stages(ModelVersions):
    """Which version stands where, and who said so."""

    def transition(
        self,
        model_id: int,
        to_stage: str,
        *,
        actor: str,
        reason: str,
        approved_by: str | None = None,
        report_id: int | None = None,
    ) -> Transition:
        """Moves a version to a stage and returns the row of history.

        staging and production need a passed report on the version's own base (left out: the newest), production an approval by
        somebody other than the actor; a policy approves as `policy:<name or sha>`. The version that was in production before
        is archived in the same step, and its places in pools of the new one's base pass to the new one.
        Raises UserError (illegal move), GateRefused (missing evidence or approval).
        """
        with self.write() as db:
            model = version_of(db, model_id)
            _require_legal(model, to_stage, actor)
            if to_stage in ("staging", "production"):
                report_id = _evidence(db, model, report_id)
            if to_stage == "production":
                _require_approval(model, actor, approved_by)
                _require_been_there(db, model)
            if to_stage == "archived":
                _require_undeployed(db, model)
            places = _retire_current(db, model, actor) if to_stage == "production" else []
            values = {"from_stage": model.stage, "to_stage": to_stage, "report_id": report_id, "reason": reason}
            row = _append(db, model, {**values, "actor": actor, "approved_by": approved_by})
            for pool in places:
                _take_over(db, pool, version_of(db, model_id))
            return row

    def history(self, of: str | int) -> list[Transition]:
        """The moves of a model line (`tenant/name`), of one version (`tenant/name@3`) or of a version's id, oldest first."""
        if isinstance(of, str) and parse_model_name(of).version is None:
            name = parse_model_name(of)
            where = [model_versions.c.tenant == name.tenant, model_versions.c.name == name.name]
        else:
            where = [model_versions.c.id == (self.model(of).id if isinstance(of, str) else of)]
        with self.read() as db:
            return _rows(db, *where)

    def all_transitions(self) -> list[Transition]:
        """The moves of every model line, oldest first."""
        with self.read() as db:
            return _rows(db)

    def verify_history(self) -> int:
        """Re-hashes every transition in order and returns their number. Raises IntegrityError naming the first broken one."""
        with self.read() as db:
            rows = _rows(db)
        before = GENESIS
        for number, row in enumerate(rows, start=1):
            if (row.seq, row.previous_sha256, row.sha256) != (number, before, row.seal()):
                raise IntegrityError(
                    f"transition {row.seq} of {row.model} ({row.from_stage} > {row.to_stage}) was changed or one is missing",
                    why="Its sha256 does not cover what it says and the row before it.",
                    cure="restore the catalog from a backup; who approved what can no longer be trusted",
                )
            before = row.sha256
        return len(rows)

    def set_pool(self, pool: str, base_digest: str) -> None:
        """Makes a pool of servers for a base, or moves it to another base that every deployed version passed on."""
        require_sha256("base_digest", base_digest)
        with self.write() as db:
            require_rows(db)  # else a pool that somebody moved by hand would be moved back in silence
            ensure(db, base_models, digest=base_digest, name="", created_at=now())
            known = db.execute(sa.select(pools.c.base_digest).where(pools.c.id == pool)).scalar()
            if known is None:
                db.execute(sa.insert(pools).values(id=pool, base_digest=base_digest))
                written(db, pools, pool)
            elif known != base_digest:
                for model in _deployed(db, pool):
                    _require_pass(db, model, base_digest)
                db.execute(sa.update(pools).where(pools.c.id == pool).values(base_digest=base_digest))
                written(db, pools, pool)

    def pools(self) -> dict[str, str]:
        """Pool -> digest of its base."""
        with self.read() as db:
            return {row.id: row.base_digest for row in db.execute(sa.select(pools).order_by(pools.c.id))}

    def deploy(self, pool: str, model_id: int) -> None:
        """Says that a pool serves a version; again changes nothing.

        Raises NotFoundError, GateRefused, and IntegrityError when a row of the catalog was changed past our code.
        """
        with self.write() as db:
            require_rows(db)
            _deploy(db, pool, version_of(db, model_id))

    def undeploy(self, pool: str, model_id: int) -> None:
        """Says that a pool no longer serves a version."""
        with self.write() as db:
            _undeploy(db, pool, model_id)

    def deployed(self, pool: str) -> list[ModelVersion]:
        """The versions that a pool serves, by line."""
        with self.read() as db:
            return _deployed(db, pool)

    def pools_of(self, model_id: int) -> list[str]:
        """The pools that serve a version."""
        with self.read() as db:
            return _pools_of(db, model_id)


def _require_legal(model: ModelVersion, to_stage: str, actor: str) -> None:
    if to_stage not in STAGES:
        raise UserError(f"{to_stage!r} is not a stage: {did_you_mean(to_stage, STAGES[1:])}")
    if not actor:
        raise UserError(f"nobody moves {model.label}", cure="say who: FT_ACTOR, or the login name")
    if to_stage not in NEXT[model.stage]:
        raise UserError(
            f"{model.label} is in {model.stage}: it cannot move to {to_stage}",
            why="Stages follow none > dev > staging > production > archived; a rollback is archived > production.",
            cure=f"next may be: {', '.join(NEXT[model.stage])}",
        )


def _evidence(db: sa.Connection, model: ModelVersion, report_id: int | None) -> int:
    """The id of the passed report that backs a promotion."""
    same: dict[str, Any] = {"model_id": model.id, "base_digest": model.base_digest}
    report = newest_report(db, same | ({} if report_id is None else {"id": report_id}))
    if report is None:
        raise GateRefused(
            f"{model.label} has no evaluation report on its base {model.base_digest[:12]}"
            + ("" if report_id is None else f" with id {report_id}"),
            why="Staging and production need a passed report of the same version and base.",
            cure=f"evaluate it: `ft-pipeline run {model.line}`",
        )
    newest = newest_report(db, same | {"suite_sha256": report.suite_sha256})
    if not report.passed or not newest.passed:
        raise GateRefused(
            f"report {newest.report_digest[:12]} of {model.label} did not pass",
            why="The newest report of the same version, base and suite must have passed.",
            cure="read the report's reasons, mend the recipe and run it again: a better adapter gets its own version",
        )
    return report.id


def _require_approval(model: ModelVersion, actor: str, approved_by: str | None) -> None:
    if not approved_by or approved_by == actor:
        said = f"approved by {approved_by}, who is also the actor" if approved_by else "approved by nobody"
        raise GateRefused(
            f"production of {model.label} is {said}",
            why="Four eyes: whoever moves a version to production may not be the one who approves it.",
            cure="name another person, or the policy that passed it: `policy:<name>`",
        )


def _require_been_there(db: sa.Connection, model: ModelVersion) -> None:
    """A version that was archived before it reached production cannot skip staging by a rollback."""
    before = _rows(db, transitions.c.model_id == model.id, transitions.c.to_stage == "production")
    if model.stage == "archived" and not before:
        raise UserError(
            f"{model.label} was archived and never in production",
            why="A rollback goes back to what was in production once.",
            cure=f"make a new version: `ft-pipeline run {model.line}`",
        )


def _require_undeployed(db: sa.Connection, model: ModelVersion) -> None:
    if places := _pools_of(db, model.id):
        raise UserError(
            f"{model.label} is deployed in {', '.join(places)}: it cannot be archived",
            why="An archived version must not answer anybody.",
            cure=f"undeploy it first, or promote another version of {model.line}, which takes its place",
        )


def _retire_current(db: sa.Connection, model: ModelVersion, actor: str) -> list[str]:
    """Archives the production version of the line. Returns the pools that served it."""
    where = [model_versions.c.tenant == model.tenant, model_versions.c.name == model.name]
    query = sa.select(model_versions.c.id).where(*where, stage_column(model_versions.c.id) == "production")
    places: list[str] = []
    for other in db.execute(query).scalars().all():
        current = version_of(db, other)
        places += _pools_of(db, other)
        for pool in _pools_of(db, other):
            _undeploy(db, pool, other)
        reason = f"replaced by {model.label}"
        values = {"from_stage": "production", "to_stage": "archived", "report_id": None, "reason": reason}
        _append(db, current, {**values, "actor": actor, "approved_by": None})
    return places


def _append(db: sa.Connection, model: ModelVersion, values: dict[str, Any]) -> Transition:
    """Adds the next row of the chain."""
    last = db.execute(sa.select(transitions).order_by(transitions.c.seq.desc()).limit(1)).first()
    row = Transition(
        seq=last.seq + 1 if last else 1, model=model.label, created_at=now(),
        previous_sha256=last.sha256 if last else GENESIS, sha256="", **values,
    )  # fmt: skip
    row = replace(row, sha256=row.seal())
    columns = {c.name: getattr(row, c.name) for c in transitions.c if c.name != "model_id"}
    db.execute(sa.insert(transitions).values(**columns, model_id=model.id))
    written(db, transitions, row.seq)
    return row


def _rows(db: sa.Connection, *where: Any) -> list[Transition]:
    label = model_versions.c.tenant + "/" + model_versions.c.name + "@" + sa.cast(model_versions.c.version, sa.Text)
    columns = [c for c in transitions.c if c.name != "model_id"]
    query = sa.select(*columns, label.label("model")).join_from(transitions, model_versions).where(*where)
    return [Transition(**row._asdict()) for row in db.execute(query.order_by(transitions.c.seq))]


def _take_over(db: sa.Connection, pool: str, model: ModelVersion) -> None:
    """Deploys into a pool that served the version before. A version on a new base needs a pool of that base: none is given."""
    if db.execute(sa.select(pools.c.base_digest).where(pools.c.id == pool)).scalar() == model.base_digest:
        _deploy(db, pool, model)


def _deploy(db: sa.Connection, pool: str, model: ModelVersion) -> None:
    base = db.execute(sa.select(pools.c.base_digest).where(pools.c.id == pool)).scalar()
    if base is None:
        raise NotFoundError(f"no pool {pool!r}", cure="make it first: catalog.set_pool(pool, base_digest)")
    if pool in _pools_of(db, model.id):
        return
    if model.stage != "production":
        raise GateRefused(
            f"{model.label} is in {model.stage}: only production versions are deployed",
            cure=f"promote it first: `ft-pipeline promote {model.label}`",
        )
    _require_pass(db, model, base)
    db.execute(sa.insert(deployments).values(pool_id=pool, model_id=model.id, created_at=now()))
    written(db, deployments, pool, model.id)


def _require_pass(db: sa.Connection, model: ModelVersion, base: str) -> None:
    """The newest report on a base, of the suite that backed the version's promotion, must have passed."""
    promoted = sa.select(eval_reports.c.suite_sha256).join(transitions, transitions.c.report_id == eval_reports.c.id)
    promoted = promoted.where(transitions.c.model_id == model.id, transitions.c.to_stage == "production")
    suite = db.execute(promoted.order_by(transitions.c.seq.desc()).limit(1)).scalar()
    report = newest_report(db, {"model_id": model.id, "base_digest": base, "suite_sha256": suite})
    if report is None or not report.passed:
        found = "has no report" if report is None else f"has the failed report {report.report_digest[:12]}"
        raise GateRefused(
            f"{model.label} {found} on base {base[:12]} of the pool",
            why=f"Its newest report of the suite that backed its promotion ({(suite or '')[:12]}) must have passed there.",
            cure="evaluate it on that base, or use a pool of the base it was made for",
        )


def _undeploy(db: sa.Connection, pool: str, model_id: int) -> None:
    where = [deployments.c.pool_id == pool, deployments.c.model_id == model_id]
    if db.execute(sa.delete(deployments).where(*where)).rowcount:
        written(db, deployments, pool, model_id)


def _deployed(db: sa.Connection, pool: str) -> list[ModelVersion]:
    query = sa.select(deployments.c.model_id).where(deployments.c.pool_id == pool)
    return sorted((version_of(db, i) for i in db.execute(query).scalars().all()), key=lambda v: (v.line, v.version))


def _pools_of(db: sa.Connection, model_id: int) -> list[str]:
    query = sa.select(deployments.c.pool_id).where(deployments.c.model_id == model_id).order_by(deployments.c.pool_id)
    return list(db.execute(query).scalars())
