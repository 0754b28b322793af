"""The door of serve: a version in production is verified to its raw bytes and answers; an export of one is judged like any model."""

import warnings
from collections.abc import Sequence

import dagster as dg

from ft_pipeline.errors import FtError, UserError
from ft_pipeline.partitions import DEPLOYMENT, EXPORTED_MODEL, REGISTERED_MODEL, recipes
from ft_pipeline.resources import House
from ft_pipeline.serve.artifact import export_head, export_report_head
from ft_pipeline.serve.deploy import deploy, live, record
from ft_pipeline.serve.export.exporting import Exported, Workshop, export
from ft_pipeline.serve.export.formats import export_of
from ft_pipeline.serve.parity import require_parity
from ft_pipeline.serve.servable import on_vllm
from ft_pipeline.store.catalog import ModelVersion
from ft_pipeline.store.fingerprint import sha256_json

with warnings.catch_warnings():
    # partitioned checks are new in 1.13; see gate/assets.py
    warnings.simplefilter("ignore", dg.PreviewWarning)
    FIDELITY = dg.AssetCheckSpec(
        "fidelity",
        asset=EXPORTED_MODEL,
        partitions_def=recipes,
        description="Passed when every export that was asked for passed its gates and is close enough to what it was made from.",
    )


@dg.asset(
    key=DEPLOYMENT,
    deps=[REGISTERED_MODEL],
    partitions_def=recipes,
    group_name="serve",
    kinds={"peft", "openai"},
    owners=["team:ml-platform"],
    required_resource_keys={"house"},
    description="What answers for the model line now. A version outside production changes nothing and says so.",
)
def deployment(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Verifies signature, chain and files before anything answers."""
    house, key = context.resources.house, context.partition_key
    registered = house.store.fetch(house.catalog.head(key, "registered_model"))
    version = house.catalog.model(registered.manifest.config["model"])
    signed_by = parity = ""
    try:
        if version.stage == "production":
            deployed = deploy(version, catalog=house.catalog, store=house.store, settings=house.settings)
            signed_by, parity = deployed.signed_by, require_parity(deployed.adapter, version.label, house.store).told
    except FtError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    live_now = live(house.catalog)
    artifact = record(version, registered, store=house.store, live_now=live_now, parity=parity)
    house.catalog.set_head(key, "deployment", artifact, run_id=context.run.run_id)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata={
            "model": version.label,
            "stage": version.stage,
            "live": version.stage == "production",
            "live now": dg.MetadataValue.md(
                "\n".join(f"- `{v.label}` on base `{v.base_digest[:12]}`" for v in live_now) or "nothing answers yet"
            ),
            "signed by": signed_by or f"not verified: {version.label} is in {version.stage}",
            "parity": parity or f"not checked: {version.label} is in {version.stage}",
            "digest": artifact.ref.digest,
            "vLLM": on_vllm(house.store, registered.manifest.parents["adapter"]),
            "chat": dg.MetadataValue.md(f"`ft-pipeline chat {version.line}`"),
            "dagster/uri": str(artifact.folder),
        },
    )


class ExportConfig(dg.Config):
    """What is asked for. `model`: `tenant/name@N`; empty: the newest registered version. Formats: serve/export/formats.py."""

    formats: list[str] = ["merged"]  # noqa: RUF012 - pydantic copies it
    model: str = ""
    policy: str = ""
    algorithm: str = ""
    group: int = 0
    calibration_windows: int = 0


@dg.asset(
    key=EXPORTED_MODEL,
    deps=[REGISTERED_MODEL],
    partitions_def=recipes,
    group_name="serve",
    kinds={"pytorch", "safetensors"},
    owners=["team:ml-platform"],
    required_resource_keys={"house"},
    check_specs=[FIDELITY],
    description="Whole models made of a version: merged, or with fewer bits. Each is compared with its source, judged, and a version of its own.",
)
def exported_model(context: dg.AssetExecutionContext, config: ExportConfig) -> dg.MaterializeResult:
    """Runs in no job but `export_model`: an export is asked for."""
    house, key = context.resources.house, context.partition_key
    try:
        version = _version(house, key, config.model)
        made = [_exported(house, version, config, name=name, run_id=context.run.run_id) for name in config.formats]
    except FtError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    for one in made:
        house.catalog.set_head(key, export_head(one.export.format), one.artifact, run_id=context.run.run_id)
        house.catalog.set_head(
            key, export_report_head(one.export.format), one.report_artifact, run_id=context.run.run_id
        )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(sha256_json([one.artifact.ref.digest for one in made])),
        metadata={
            "model": version.label,
            "exports": dg.MetadataValue.table([dg.TableRecord(_row(one)) for one in made]),
            **{f"{one.export.format} digest": one.artifact.ref.digest for one in made},
            **{f"{one.export.format} report": dg.MetadataValue.path(str(one.report_artifact.folder / "report.html")) for one in made},
        },
        check_results=[_fidelity(made)],
    )  # fmt: skip


def _version(house: House, key: str, name: str) -> ModelVersion:
    """The version that is asked for, of this model line. Raises UserError, NotFoundError."""
    if not name:
        registered = house.store.recorded(house.catalog.head(key, "registered_model"))
        return house.catalog.model(registered.config["model"])
    version = house.catalog.model(name)
    if version.line != key:
        raise UserError(
            f"{version.label} is no version of {key}",
            why="An export stands in the partition of the recipe that made its source.",
            cure=f"run the partition {version.line}",
        )
    return version


def _exported(house: House, version: ModelVersion, config: ExportConfig, *, name: str, run_id: str) -> Exported:
    shop = Workshop(
        store=house.store, catalog=house.catalog, settings=house.settings, placement=house.placement,
        run=lambda job: house.worker.run(job, house.listener),
    )  # fmt: skip
    wanted = export_of(
        name, algorithm=config.algorithm, group=config.group or None, calibration_windows=config.calibration_windows or None
    )  # fmt: skip
    return export(version, house.recipe(version.line), wanted, policy=config.policy, shop=shop, run_id=run_id)


def _row(one: Exported) -> dict[str, str | float]:
    return {
        "format": one.export.format,
        "verdict": str(one.report.verdict),
        "version": one.version.label if one.version else "not registered",
        "stage": one.version.stage if one.version else "-",
        "MB": round(one.artifact.manifest.size_bytes / 1e6, 2),
        "KL, nats a token": round(one.fidelity["kl"], 6),
        "top-1": round(one.fidelity["top1"], 4),
        "perplexity ratio": round(one.fidelity["perplexity_ratio"], 4),
        "why": one.report.reason,
    }


def _fidelity(made: Sequence[Exported]) -> dg.AssetCheckResult:
    refused = [one for one in made if not one.report.passed]
    told = "; ".join(f"{one.export.format}: {one.report.verdict}, {one.report.reason}" for one in refused)
    return dg.AssetCheckResult(
        check_name="fidelity",
        passed=not refused,
        severity=dg.AssetCheckSeverity.ERROR,
        description=told or f"{', '.join(one.export.format for one in made)} passed",
    )


defs = dg.Definitions(assets=[deployment, exported_model])
