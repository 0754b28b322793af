"""The gate's door: `eval_report` and the blocking check `gate`, which says in one sentence what stopped a promotion."""

import warnings

import dagster as dg

from ft_pipeline.gate.artifact import FOREST, EvalReport, read_report
from ft_pipeline.gate.evaluation import evaluation_job, publish_suites, refuse_scores
from ft_pipeline.gate.figures import as_markdown
from ft_pipeline.gate.page import check_description, gate_facts, gate_table, next_steps
from ft_pipeline.partitions import ADAPTER, BASE_MODEL, CURATED_DATASET, EVAL_REPORT, recipes
from ft_pipeline.resources import House
from ft_pipeline.store.artifacts import Artifact

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
    """Evaluates the newest adapter of the model line on the base model as it is now."""
    house: House = context.resources.house
    key = context.partition_key
    recipe = house.recipe(key)
    refuse_scores(recipe)
    gate = recipe.gate
    heads = {"adapter": "adapter", "base": "base_model", "curated": "curated_dataset"}
    parents = {role: house.catalog.head(key, asset) for role, asset in heads.items()}
    parents |= publish_suites(gate, house.store, house.settings)
    job = evaluation_job(gate, parents, settings=house.settings, placement=house.placement, key=key)
    reused = house.store.manifest(job.spec.kind, job.spec.fingerprint) is not None
    artifact = house.worker.run(job, house.listener)
    house.catalog.set_head(key, "eval_report", artifact, run_id=context.run.run_id)
    report = read_report(artifact)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata=_metadata(artifact, report) | {"reused": dg.MetadataValue.bool(reused)},
        check_results=[_check(artifact, report)],
    )


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
        **numbers,
    }


def _gates(report: EvalReport) -> dg.MetadataValue:
    return dg.MetadataValue.table([dg.TableRecord(row) for row in gate_table(report)])


def _check(artifact: Artifact, report: EvalReport) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name="gate",
        passed=report.passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=check_description(report),
        metadata={
            "what happened": dg.MetadataValue.text(f"{report.verdict}: {report.reason}."),
            "gates": _gates(report),
            "forest": dg.MetadataValue.md(as_markdown(artifact.file(FOREST), "gates")),
            "next steps": dg.MetadataValue.md(next_steps(report)),
            "policy": dg.MetadataValue.text(report.policy),
            "report": dg.MetadataValue.path(str(artifact.folder / "report.html")),
            "verdict": dg.MetadataValue.text(report.verdict.value),
        },
    )


defs = dg.Definitions(assets=[eval_report])
