"""Makes a version of an adapter whose gates passed: catalog row, model card, signed statement, lineage, first stages."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ft_pipeline.errors import FtError, GateRefused, NotFoundError, UserError
from ft_pipeline.gate.artifact import RECERTIFIED_KIND
from ft_pipeline.recipe import Recipe, recipe_sha256
from ft_pipeline.register import promotion
from ft_pipeline.register.artifact import CROISSANT, KIND, LINEAGE, STATEMENT, seal
from ft_pipeline.register.attest import ROOTS, claimed, sign, statement
from ft_pipeline.register.chain import Link, by_role, distinct, lineage, walk
from ft_pipeline.register.documents import documents
from ft_pipeline.register.evidence import Evidence, read_evidence, require_about, require_pass
from ft_pipeline.register.keys import signing_key
from ft_pipeline.register.ml_bom import without_hashes
from ft_pipeline.register.override import with_override
from ft_pipeline.register.takedown import require_not_forgotten
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, ModelVersion, NewModel
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json, code_digest, sha256_json
from ft_pipeline.store.manifest import Ref, Spec

HERE = Path(__file__).parent
HASHED = (
    "attest.py", "card_plots.py", "chain.py", "documents.py", "html_page.py", "ml_bom.py", "model_card.py", "registration.py",
)  # fmt: skip
"""The files that decide the bytes of a registered model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """The newest adapter of a model line and what is live now."""

    recipe: Recipe
    adapter: Ref
    report: Ref
    base: Ref
    run_id: str
    exported_as: str = ""
    """Format of a whole model that was made of the line's adapter: it becomes a version of the line `tenant/name-FORMAT`."""

    @property
    def name(self) -> str:
        """Second part of the line."""
        return f"{self.recipe.name}-{self.exported_as}" if self.exported_as else self.recipe.name

    @property
    def line(self) -> str:
        """`tenant/name`."""
        return f"{self.recipe.tenant}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A registered version."""

    model: ModelVersion
    artifact: Artifact
    evidence: Evidence
    adapter: Link
    reused: bool
    """True when this adapter and report were registered before."""


def register(candidate: Candidate, *, store: Store, catalog: Catalog, settings: Settings) -> Outcome:
    """The version of the candidate, in `staging`, or in `production` where its policy promotes a PASS by itself.

    The same adapter and report again give the same version. Raises GateRefused when the report is not a PASS or is about
    another adapter or base than the live ones, IntegrityError when an ancestor is damaged.
    """
    line = candidate.line
    _require_own_line(candidate, catalog)
    evidence = with_override(read_evidence(store, candidate.report), store=store, catalog=catalog, settings=settings)
    require_about(evidence, adapter=candidate.adapter, base=candidate.base)
    roots = _roots(candidate, evidence, store)
    _require_own_base(candidate, roots[0], evidence, catalog=catalog)
    require_pass(evidence, line)
    require_not_forgotten((link.ref.digest for link in distinct(roots[0])), line, catalog)
    model = catalog.register(_new_model(candidate, store, roots[0]))
    report_id = catalog.add_report(
        model.id, candidate.base.digest, evidence.suite_sha256, evidence.backed, candidate.report.digest
    )
    artifact = _artifact((candidate, evidence), model, store=store, catalog=catalog, settings=settings, roots=roots)
    catalog.index(artifact.manifest)
    catalog.attest(model.id, artifact.ref.digest)
    promotion.admit(catalog, model, evidence, actor=settings.actor, report_id=report_id)
    seal(catalog, settings)
    return Outcome(
        model=catalog.model_by_id(model.id),
        artifact=artifact,
        evidence=evidence,
        adapter=roots[0],
        reused=model.registered_digest is not None,
    )


def _roots(candidate: Candidate, evidence: Evidence, store: Store) -> tuple[Link, ...]:
    """The trees that are signed: of the adapter, of its report and of what a person said about that."""
    refs = {"adapter": candidate.adapter, "report": candidate.report}
    if evidence.override and not evidence.passed:
        refs["override"] = evidence.override.ref
    return tuple(walk(store, role, refs[role]) for role in ROOTS if role in refs)


def _require_own_line(candidate: Candidate, catalog: Catalog) -> None:
    """Raises UserError where a recipe and the exports of another one have the same name."""
    kinds = set()
    for model in catalog.models(candidate.recipe.tenant):
        if model.line == candidate.line:
            with contextlib.suppress(NotFoundError):  # not indexed: another store's
                kinds.add(catalog.ref(model.adapter_digest).kind)
    if kinds and candidate.adapter.kind not in kinds:
        raise UserError(
            f"the line {candidate.line} holds versions of the kind {', '.join(sorted(kinds))}, this is an {candidate.adapter.kind}",
            why="A line goes from version to version of one thing, or a rollback would change what it is.",
            cure="rename the recipe",
        )


def _require_own_base(candidate: Candidate, adapter: Link, evidence: Evidence, *, catalog: Catalog) -> None:
    """An adapter becomes a version on the base that it was trained on, or on one that it was recertified for.

    Any other verdict on a base that moved is evidence about the versions that exist.
    """
    trained_on = adapter.manifest.parents["base"]
    recertified = candidate.report.kind == RECERTIFIED_KIND and evidence.passed
    if trained_on == candidate.base or recertified:
        return
    for model in catalog.models(candidate.recipe.tenant):
        if model.line == candidate.recipe.key and model.adapter_digest == candidate.adapter.digest:
            catalog.add_report(
                model.id, candidate.base.digest, evidence.suite_sha256, evidence.passed, candidate.report.digest
            )
    raise GateRefused(
        f"the base of {candidate.recipe.key} moved from {trained_on.digest[:12]} to {candidate.base.digest[:12]}; "
        f"the adapter says {evidence.verdict} there",
        why="A version stands on the base that it was trained on, or on one that it is recertified for; the verdict is recorded for it.",
        cure="versions in production go on with their own base; `ft-pipeline bump status` shows what is open, `bump retrain` trains on the new one",
    )


def _new_model(candidate: Candidate, store: Store, adapter: Link) -> NewModel:
    recipe = candidate.recipe
    lora = None if candidate.exported_as else recipe.finetune.lora
    return NewModel(
        tenant=recipe.tenant, name=candidate.name, base_digest=candidate.base.digest,
        dataset_digest=by_role(adapter, "curated").ref.digest, adapter_digest=candidate.adapter.digest,
        report_digest=candidate.report.digest, recipe_sha256=recipe_sha256(recipe), run_id=candidate.run_id,
        code=adapter.manifest.code, artifact_type="lora_adapter" if lora else "full_model",
        lora_rank=lora.rank if lora else None, lora_alpha=lora.alpha if lora else None,
        lora_modules=_lora_modules(store, candidate.adapter) if lora else None,
    )  # fmt: skip


def _lora_modules(store: Store, adapter: Ref) -> list[str]:
    """The modules that carry an adapter, as its own config names them."""
    named = json.loads(store.fetch(adapter).file("adapter_config.json").read_bytes())["target_modules"]
    return [named] if isinstance(named, str) else sorted(named)


def _artifact(
    judged: tuple[Candidate, Evidence],
    model: ModelVersion,
    *,
    store: Store,
    catalog: Catalog,
    settings: Settings,
    roots: tuple[Link, ...],
) -> Artifact:
    """The version's artifact: made once, found ever after, so that another key or card layout never changes a version."""
    candidate, evidence = judged
    if model.registered_digest:
        # a deleted one is made again below: the same key and code give the same bytes
        with contextlib.suppress(NotFoundError):
            return store.fetch(catalog.ref(model.registered_digest))
    key = signing_key(settings)
    curated = by_role(roots[0], "curated")
    spec = Spec(
        kind=KIND,
        config={"model": model.label, "description": candidate.recipe.description, "key": key.public_key.keyid},
        parents={**{root.role: root.ref for root in roots}, "base": candidate.base, "curated": curated.ref},
        code=code_digest(*(HERE / name for name in HASHED)),
    )
    if found := store.find(spec):
        return found
    links = distinct(*roots)
    claim = statement(model.label, links, _parameters(candidate.recipe))
    with store.publish(spec) as draft:
        (draft.folder / STATEMENT).write_bytes(canonical_json(sign(claim, key)))
        (draft.folder / LINEAGE).write_bytes(json.dumps(lineage(links), indent=1, sort_keys=True).encode())
        told = replace(candidate.recipe, name=candidate.name)
        for name, text in documents((told, evidence), model.version, links, store=store).items():
            write_atomic(draft.folder / name, text.encode())
            if name == CROISSANT:
                draft.logical[name] = sha256_json(without_hashes(json.loads(text)))
        draft.counts["ancestors"] = len(claimed(claim))
    return _published(draft.artifact)


def _parameters(recipe: Recipe) -> dict[str, Any]:
    return {"recipe_sha256": recipe_sha256(recipe), "method": recipe.finetune.method}


def _published(artifact: Artifact | None) -> Artifact:
    if artifact is None:
        raise FtError("the registered model was not published")
    return artifact
