"""The gate's door: `eval_report` and the blocking check `gate`, which says in one sentence what stopped a promotion."""

import warnings
from collections.abc import Mapping

import dagster as dg

from ft_pipeline.gate.artifact import FOREST, RECERTIFIED_KIND, REPORT, EvalReport, read_report
from ft_pipeline.gate.bump import status
from ft_pipeline.gate.bump.recertify import Case, read_recertification, recertify, trained_on
from ft_pipeline.gate.bump.reuse import certify, report_before
from ft_pipeline.gate.evaluation import evaluation_job, publish_suites, refuse_scores
from ft_pipeline.gate.figures import as_markdown
from ft_pipeline.gate.mirror import mirror
from ft_pipeline.gate.notify import notice_of, notify
from ft_pipeline.gate.page import check_description, gate_facts, gate_table, next_steps
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.partitions import ADAPTER, BASE_MODEL, BUMP_STATUS, CURATED_DATASET, EVAL_REPORT, recipes
from ft_pipeline.recipe import Recipe
from ft_pipeline.resources import House, base_marks
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.manifest import Ref
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import log

with warnings.catch_warnings():
    # partitioned checks are new in 1.13; unpartitioned, one failing tenant would block everybody (orchestration.md)
    warnings.simplefilter("ignore", dg.PreviewWarning)
    GATE = dg.AssetCheckSpec(
        "gate",
        asset=EVAL_REPORT,
        blocking=True,
        partitions_def=recipes,
        description="Passed only when the policy's overall verdict is PASS. Blocks registration.",
    )


@dg.asset(
    key=EVAL_REPORT, deps=[ADAPTER, BASE_MODEL, CURATED_DATASET], partitions_def=recipes, group_name="gate",
    kinds={"pytorch", "python"}, owners=["team:ml-platform"], required_resource_keys={"house"}, check_specs=[GATE],
    description="Adapter against the live base model: holdout, benchmarks, safety; each with bounds, a verdict and a reason.",
)  # fmt: skip
def eval_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Evaluates the newest adapter of the model line on the base model as it is now; one whose base moved is recertified."""
    house: House = context.resources.house
    key = context.partition_key
    recipe = house.recipe(key)
    refuse_scores(recipe)
    heads = {"adapter": "adapter", "base": "base_model", "curated": "curated_dataset"}
    parents = {role: house.catalog.head(key, asset) for role, asset in heads.items()}
    parents |= publish_suites(recipe.gate, house.store, house.settings)
    known = house.catalog.heads(key).get("eval_report")
    artifact = _examined(house, recipe, parents)
    house.catalog.set_head(key, "eval_report", artifact, run_id=context.run.run_id)
    report = read_report(artifact)
    certify(house.catalog, artifact, passed=report.passed)
    told = {} if known == artifact.ref else _told(house, artifact, report, key=key)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata=_metadata(artifact, report) | {"reused": dg.MetadataValue.bool(known == artifact.ref)} | told,
        check_results=[_check(artifact, report)],
    )


def _examined(house: House, recipe: Recipe, parents: Mapping[str, Ref]) -> Artifact:
    """The report on the adapter's own base; its recertification when the live base is another one."""

    def job(of: Mapping[str, Ref]) -> Job:
        return evaluation_job(recipe.gate, of, settings=house.settings, placement=house.placement, key=recipe.key)

    def evaluate(of: Mapping[str, Ref]) -> Artifact:
        made = house.worker.run(job(of), house.listener)
        house.catalog.index(made.manifest)
        return made

    def stored(of: Mapping[str, Ref]) -> Artifact:
        return report_before(house.store, house.catalog, job(of).spec, compute=evaluate)

    old_base = trained_on(house.store, parents["adapter"])
    if old_base is None or old_base == parents["base"]:
        return evaluate(parents)
    spec = job(parents).spec
    policy = read_policy(recipe.gate.policy)
    case = Case(parents=parents, old_base=old_base, config=spec.config, policy=policy)
    return recertify(case, house.store, evaluate=evaluate, stored=stored)


def _told(house: House, artifact: Artifact, report: EvalReport, *, key: str) -> dict[str, dg.MetadataValue]:
    """MLflow gets the numbers of a new report, the tenant its verdict; what did not reach them is said here and stops nothing."""
    mirrored = mirror(
        report, adapter=artifact.manifest.parents["adapter"], model_line=key, made=artifact.ref, where=(house.store, house.settings)
    )  # fmt: skip
    if not mirrored.ok:
        log(house.listener, f"{key}: {mirrored.text}; the report has every number")
    place = str(artifact.folder / REPORT)
    notice = notice_of(report, model_line=key, place=place, digest=artifact.ref.digest)
    told = notify(notice, house.settings, house.listener)
    return {"notified": dg.MetadataValue.text(told.text), "mlflow run": dg.MetadataValue.text(mirrored.text)}


def _metadata(artifact: Artifact, report: EvalReport) -> dict[str, dg.MetadataValue]:
    numbers = {name: dg.MetadataValue.float(value) for name, value in gate_facts(report).items()}
    return {
        "verdict": dg.MetadataValue.text(report.verdict.value),
        "reason": dg.MetadataValue.text(report.reason),
        "gates": _gates(report),
        "forest": dg.MetadataValue.md(as_markdown(artifact.file(FOREST), "gates")),
        "report": dg.MetadataValue.path(str(artifact.folder / "report.html")),
        "digest": dg.MetadataValue.text(artifact.ref.digest),
        "dagster/uri": dg.MetadataValue.text(str(artifact.folder)),
        "dagster/row_count": dg.MetadataValue.int(artifact.manifest.counts["samples"]),
        **_recertified(artifact),
        **numbers,
    }


def _said(artifact: Artifact, report: EvalReport) -> str:
    """What the check says: the gate that decided, or what became of an adapter whose base moved."""
    if artifact.ref.kind != RECERTIFIED_KIND:
        return check_description(report)
    found = read_recertification(artifact)
    return f"{found['verdict']} on the new base: {found['reason']}. What to do: {found['action']}."


def _recertified(artifact: Artifact) -> dict[str, dg.MetadataValue]:
    """What became of an adapter whose base moved; nothing for a report on its own base."""
    if artifact.ref.kind != RECERTIFIED_KIND:
        return {}
    found = read_recertification(artifact)
    return {
        "base change": dg.MetadataValue.text(found["verdict"]),
        "what to do": dg.MetadataValue.text(found["action"]),
        "changed": dg.MetadataValue.text(", ".join(found["preflight"]["changed"]) or "nothing"),
        "drift of the base": dg.MetadataValue.json(found["drift"]),
        "old base": dg.MetadataValue.text(artifact.manifest.parents["old_base"].digest),
    }


def _gates(report: EvalReport) -> dg.MetadataValue:
    return dg.MetadataValue.table([dg.TableRecord(row) for row in gate_table(report)])


def _check(artifact: Artifact, report: EvalReport) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name="gate",
        passed=report.passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=_said(artifact, report),
        metadata={
            "what happened": dg.MetadataValue.text(f"{report.verdict}: {report.reason}."),
            "gates": _gates(report),
            "forest": dg.MetadataValue.md(as_markdown(artifact.file(FOREST), "gates")),
            "next steps": dg.MetadataValue.md(next_steps(report)),
            "policy": dg.MetadataValue.text(report.policy),
            "report": dg.MetadataValue.path(str(artifact.folder / "report.html")),
            "digest": dg.MetadataValue.text(artifact.ref.digest),
            "verdict": dg.MetadataValue.text(report.verdict.value),
        },
    )


@dg.asset(
    key=BUMP_STATUS, deps=[BASE_MODEL, EVAL_REPORT], group_name="gate", kinds={"python"}, owners=["team:ml-platform"],
    required_resource_keys={"house"},
    description="For auditors: every model line whose base moved, what was decided, and which pools that holds back.",
)  # fmt: skip
def bump_status(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Reads the catalog and the newest recertifications; computes nothing."""
    house: House = context.resources.house
    lines = status.dependants(house.catalog, house.store, base_marks(context.instance, house.catalog.recipe_keys()))
    moved = [line for line in lines if line.state != status.CURRENT]
    held = status.pools(house.catalog, lines)
    return dg.MaterializeResult(
        metadata={
            "open": sum(line.is_open for line in moved),
            "moved": len(moved),
            "current": len(lines) - len(moved),
            "pools held back": sum(bool(pool.blocked_by) for pool in held),
            "model lines": dg.MetadataValue.md(status.page(moved, held)),
        }
    )


defs = dg.Definitions(assets=[eval_report, bump_status])
