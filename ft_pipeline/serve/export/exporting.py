"""The road of an export: verified version, merged weights, fewer bits, its own gates, fidelity, and a version of its own where all pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import IntegrityError, UserError
from ft_pipeline.gate.artifact import EvalReport, evaluation_of, read_report
from ft_pipeline.recipe import Recipe, recipe_sha256
from ft_pipeline.register.artifact import Registered, register_export
from ft_pipeline.serve.artifact import adapters_of_exports
from ft_pipeline.serve.deploy import verified
from ft_pipeline.serve.export.formats import MERGED, UNQUANTISED, Export, export_of, exported_spec, require_fit
from ft_pipeline.serve.export.policy import policy_for, policy_json, read_policy
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Manifest, Ref, Spec
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.job import Job, Placement

MODULE = "ft_pipeline.serve.export.main"
HERE = Path(__file__).parent
JUDGES = ("fidelity.py", "judge.py", "merge.py", "policy.py")
"""The files that decide what a report on an export says."""
FIDELITY = "fidelity.json"
OPEN_STAGES = ("dev", "staging", "production")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """What an export needs of the house."""

    store: Store
    catalog: Catalog
    settings: Settings
    placement: Placement
    run: Callable[[Job], Artifact]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """One export of a version."""

    source: ModelVersion
    export: Export
    artifact: Artifact
    report_artifact: Artifact
    report: EvalReport
    fidelity: Mapping[str, Any]
    version: ModelVersion | None
    """None where the report is no PASS: then the artifact stays in the store and is nobody's version."""


def export(
    version: ModelVersion, recipe: Recipe, wanted: Export, *, policy: str, shop: Workshop, run_id: str
) -> Exported:
    """Makes the export of a version, judges it and registers it when everything passed. What was made before is found.

    Raises IntegrityError for a version whose chain is damaged, UserError for what cannot be exported.
    """
    registered = _exportable(version, recipe, shop)
    whole = _unquantised(version, registered, wanted, shop=shop)
    made = whole if wanted.is_merged else _quantised(version, whole, wanted, shop=shop, base=registered.base)
    judged = _judged(version, recipe, made, policy=policy or policy_for(recipe.gate.policy), shop=shop)
    report = read_report(judged)
    child = _registered(recipe, made, judged, shop=shop, run_id=run_id) if report.passed else None
    return Exported(
        source=version, export=wanted, artifact=made, report_artifact=judged, report=report, version=child,
        fidelity=json.loads(judged.file(FIDELITY).read_bytes()),
    )  # fmt: skip


def _exportable(version: ModelVersion, recipe: Recipe, shop: Workshop) -> Registered:
    """The version, its signature and chain verified."""
    if version.stage not in OPEN_STAGES:
        raise UserError(
            f"{version.label} is in stage {version.stage}",
            why="What may no longer answer is not made again under another name.",
            cure=f"`ft-pipeline models` shows the stages; export another version of {version.line}",
        )
    if (ours := recipe_sha256(recipe)) != version.recipe_sha256:
        raise UserError(
            f"the recipe of {version.line} is not the one that made {version.label}",
            why=f"Its digest is {ours[:12]}, that of the version {version.recipe_sha256[:12]}: an export is judged by its recipe's gates.",
            cure=f"`ft-pipeline run {version.line}` brings the line up to date; then export the new version",
        )
    return verified(version, catalog=shop.catalog, store=shop.store, settings=shop.settings)


def _unquantised(version: ModelVersion, registered: Registered, wanted: Export, *, shop: Workshop) -> Artifact:
    """The whole model before any rounding: the adapter merged into its base, or the full fine-tune itself."""
    if version.artifact_type == "lora_adapter":
        spec = exported_spec(export_of(MERGED), {"adapter": registered.adapter, "base": registered.base})
        return _run(spec, f"merge {version.label}", shop)
    if wanted.is_merged:
        raise UserError(
            f"{version.label} is a whole model already: there is no adapter to merge",
            cure="choose a quantised format, or serve it as it is",
        )
    return shop.store.fetch(registered.adapter)


def _quantised(version: ModelVersion, whole: Artifact, wanted: Export, *, shop: Workshop, base: Ref) -> Artifact:
    require_fit(wanted, json.loads(whole.file("config.json").read_bytes()))
    parents = {UNQUANTISED: whole.ref, "base": base}
    if wanted.calibration_windows:
        parents["shards"] = _ancestor(shop.store, whole.manifest, "shards")
    return _run(exported_spec(wanted, parents), f"{wanted.format} {version.label}", shop, environment="export")


def _judged(version: ModelVersion, recipe: Recipe, made: Artifact, *, policy: str, shop: Workshop) -> Artifact:
    """The report on an export: the gates of its recipe with the export in the place of the adapter, and its fidelity."""
    limits = read_policy(policy)
    about = {
        "adapter": made.ref, "base": made.manifest.parents["base"],
        "curated": _ancestor(shop.store, made.manifest, "curated"),
    }  # fmt: skip
    job = evaluation_of(recipe, about, store=shop.store, settings=shop.settings, placement=shop.placement)
    ordinary = _indexed(shop.run(job), shop)
    rules = dict(ordinary.manifest.config["policy"])
    rules["auto_promote"] = bool(rules.get("auto_promote")) and limits.auto_promote
    config = {
        **ordinary.manifest.config, "policy": rules, "fidelity_policy": policy, "fidelity": policy_json(limits),
    }  # fmt: skip
    code = code_digest(*(HERE / name for name in JUDGES))
    parents = {**ordinary.manifest.parents, "report": ordinary.ref}
    spec = Spec(kind="eval_report", config=config, parents=parents, code=code)
    return _run(spec, f"compare {version.label}", shop)


def _registered(recipe: Recipe, made: Artifact, judged: Artifact, *, shop: Workshop, run_id: str) -> ModelVersion:
    return register_export(
        recipe, made.ref, judged.ref, base=made.manifest.parents["base"], run_id=run_id,
        format=made.manifest.config["format"], store=shop.store, catalog=shop.catalog, settings=shop.settings,
    )  # fmt: skip


def _run(spec: Spec, name: str, shop: Workshop, *, environment: Any = "ours") -> Artifact:
    job = Job(
        name=name, module=MODULE, spec=spec, section=spec.config, folder=run_folder(shop.settings.work, spec.fingerprint),
        placement=shop.placement, facts={}, environment=environment,
    )  # fmt: skip
    return _indexed(shop.run(job), shop)


def _indexed(made: Artifact, shop: Workshop) -> Artifact:
    shop.catalog.index(made.manifest)
    return made


def _ancestor(store: Store, manifest: Manifest, role: str) -> Ref:
    """The nearest ancestor in a role. Raises IntegrityError without one."""
    level = [manifest]
    while level:
        for at in level:
            if role in at.parents:
                return at.parents[role]
        level = [store.recorded(ref) for at in level for ref in at.parents.values()]
    raise IntegrityError(f"{manifest.ref.path} has no ancestor in the role {role!r}")


def reports_of(line: str, catalog: Catalog, store: Store) -> list[tuple[Manifest, Artifact]]:
    """Every export made of a model line's versions, with the newest report on each: what the advice joins with its table."""
    models = {v.adapter_digest for v in catalog.models(line.partition("/")[0]) if v.line == line}
    made_of, found = adapters_of_exports(store), []
    for manifest in (m for m in store.all("exported_model") if made_of[m.digest] in models):
        reports = [store.recorded(ref) for ref in catalog.children(manifest.digest) if ref.kind == "eval_report"]
        joined = [r for r in reports if FIDELITY in r.files]
        if joined:
            found.append((manifest, store.fetch(max(joined, key=lambda r: r.created_at).ref)))
    return found
