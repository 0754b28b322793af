"""Which stage a version is in and who may move it: dev > staging > production > archived, and back by rollback."""

from __future__ import annotations

from dataclasses import dataclass

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.register.evidence import Evidence, read_evidence, require_pass
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, ModelVersion, Transition
from ft_pipeline.store.catalog_rows import parse_model_name

FOLLOWS = {"none": "dev", "dev": "staging", "staging": "production"}
BACKED = ("staging", "production")
"""Stages that need a passed report."""


def promote(
    catalog: Catalog, model: ModelVersion, to_stage: str | None = None, *, store: Store, actor: str, reason: str
) -> Transition:
    """Moves a version to a stage, by default the next one, where no second person is needed. The production version before it is
    archived in the same step.

    Raises GateRefused with the failing gates when its report is not a PASS and nobody overruled it, or when production waits for
    a second person (approval.py): nobody can be named here who did not act. UserError for a move that does not exist.
    """
    target = to_stage or next_stage(model)
    if target == "archived":
        return archive(catalog, model, actor=actor, reason=reason)
    approved_by = None
    if target in BACKED:
        found = backing(model, store=store, catalog=catalog)
        reason += found.note
        if not found.overruled and (target == "staging" or found.evidence.auto_promote):
            approved_by = policy_principal(found.evidence)
    return catalog.transition(model.id, target, actor=actor, approved_by=approved_by, reason=reason)


def waits_for_a_person(model: ModelVersion, to_stage: str | None, *, store: Store, catalog: Catalog) -> bool:
    """True when the move is from staging to production and the policy does not make it by itself. Raises GateRefused without a PASS."""
    if model.stage != "staging" or (to_stage or next_stage(model)) != "production":
        return False
    found = backing(model, store=store, catalog=catalog)
    return bool(found.overruled) or not found.evidence.auto_promote


@dataclass(frozen=True, kw_only=True, slots=True)
class Backing:
    """What a promotion stands on."""

    evidence: Evidence
    overruled: str
    """`override:<digest>` when the report is no PASS, else empty."""

    @property
    def note(self) -> str:
        """What the reason in the history says besides."""
        return f" (its report is no PASS; {self.overruled})" if self.overruled else ""


def backing(model: ModelVersion, *, store: Store, catalog: Catalog) -> Backing:
    """The report of a version. Raises GateRefused unless it is a PASS or a person overruled it."""
    evidence = read_evidence(store, catalog.ref(model.report_digest))
    overruled = "" if evidence.passed else _was_overruled(model, store, catalog)
    if not overruled:
        require_pass(evidence, model.label)
    return Backing(evidence=evidence, overruled=overruled)


def admit(catalog: Catalog, model: ModelVersion, evidence: Evidence, *, actor: str, report_id: int) -> list[Transition]:
    """The moves that a PASS makes by itself: to dev, to staging, and to production where the policy says `auto_promote`.

    What a person overruled goes to staging at most.

    A version that a person moved on, or archived, stays where it is.
    """
    require_pass(evidence, model.label)
    overruled = None if evidence.passed else evidence.override
    limit = "production" if evidence.auto_promote and not overruled else "staging"
    why = overruled.told if overruled else f"every required gate of {evidence.policy} passed"
    moves: list[Transition] = []
    stage = catalog.model_by_id(model.id).stage
    while stage in FOLLOWS and stage != limit:
        stage = FOLLOWS[stage]
        moves.append(
            catalog.transition(
                model.id,
                stage,
                actor=actor,
                approved_by=overruled.principal if overruled else policy_principal(evidence),
                reason="registered" if stage == "dev" else why,
                report_id=report_id if stage in BACKED else None,
            )
        )
    return moves


def _was_overruled(model: ModelVersion, store: Store, catalog: Catalog) -> str:
    """How history names the override with which a version was registered and signed, empty when there is none."""
    if not model.registered_digest:
        return ""
    ref = store.fetch(catalog.ref(model.registered_digest)).manifest.parents.get("override")
    return (
        f"override:{ref.digest[:12]}"
        if ref and store.fetch(ref).manifest.parents["report"].digest == model.report_digest
        else ""
    )


def rollback(catalog: Catalog, line: str, *, actor: str, reason: str) -> Transition:
    """Brings back the version that was in production before the present one, or the one that `tenant/name@N` names.

    Its earlier approval stands and is named. Raises NotFoundError when nothing was there before.
    """
    target = _previous(catalog, line)
    approved = [t for t in catalog.history(target.id) if t.to_stage == "production"]
    if not approved:
        raise UserError(
            f"{target.label} was never in production",
            why="A rollback goes back to what was approved once.",
            cure=f"promote it: `ft-pipeline promote {target.label}`",
        )
    return catalog.transition(
        target.id,
        "production",
        actor=actor,
        approved_by=f"transition:{approved[-1].seq}",
        reason=reason,
        report_id=approved[-1].report_id,
    )


def archive(catalog: Catalog, model: ModelVersion, *, actor: str, reason: str) -> Transition:
    """Takes a version out of service for good: undeployed everywhere, then archived."""
    for pool in catalog.pools_of(model.id):
        catalog.undeploy(pool, model.id)
    return catalog.transition(model.id, "archived", actor=actor, reason=reason)


def policy_principal(evidence: Evidence) -> str:
    """Who approves when a policy does."""
    return f"policy:{evidence.policy}"


def next_stage(model: ModelVersion) -> str:
    if model.stage in FOLLOWS:
        return FOLLOWS[model.stage]
    raise UserError(
        f"{model.label} is in {model.stage}: there is no next stage",
        cure=f"`ft-pipeline rollback {model.label}` brings an archived version back; `--to archived` retires one",
    )


def _previous(catalog: Catalog, name: str) -> ModelVersion:
    parsed = parse_model_name(name)
    if isinstance(parsed.version, int):
        return catalog.model(name)
    line = f"{parsed.tenant}/{parsed.name}"
    versions = {v.label: v for v in catalog.models(parsed.tenant) if v.line == line}
    for move in reversed(catalog.history(line)):
        version = versions[move.model]
        if move.to_stage == "production" and version.stage != "production":
            return version
    raise NotFoundError(
        f"{line} has no earlier production version to go back to",
        cure=f"`ft-pipeline history {line}` shows every move; `ft-pipeline promote {line}@N` brings another version",
    )
