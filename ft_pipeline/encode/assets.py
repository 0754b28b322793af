"""The door of encode: `packed_shards` with the blocking check `loss_mask`, and `reference_logprobs`."""

import json
import warnings

import dagster as dg

from ft_pipeline.encode import figures
from ft_pipeline.encode.artifact import SAMPLE, statistics
from ft_pipeline.encode.check import mask_fault
from ft_pipeline.encode.launch import encode_job
from ft_pipeline.encode.reference import KIND, measure_of, reference_job
from ft_pipeline.encode.reference_model import needs_reference, pin, reference_model, resolved
from ft_pipeline.partitions import CURATED_DATASET, PACKED_SHARDS, PINNED_BASE, REFERENCE_LOGPROBS, recipes
from ft_pipeline.resources import House
from ft_pipeline.store.artifacts import Artifact

NOT_NEEDED = "not needed"

with warnings.catch_warnings():
    # partitioned checks are new in 1.13; unpartitioned, one failing tenant would block everybody (orchestration.md)
    warnings.simplefilter("ignore", dg.PreviewWarning)
    LOSS_MASK = dg.AssetCheckSpec(
        "loss_mask",
        asset=PACKED_SHARDS,
        blocking=True,
        partitions_def=recipes,
        description="Some tokens but not all are trained, and conversations train their end of turn. Blocks training.",
    )


@dg.asset(
    key=PACKED_SHARDS, deps=[CURATED_DATASET, PINNED_BASE], partitions_def=recipes, group_name="encode",
    kinds={"huggingface", "parquet"}, owners=["team:ml-platform"], required_resource_keys={"house"}, check_specs=[LOSS_MASK],
    description="Fixed-length token windows with row boundaries, loss spans and row ids, in the base model's own template.",
)  # fmt: skip
def packed_shards(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Encodes the curated rows with the pinned base model's tokenizer, in a child process."""
    house: House = context.resources.house
    key = context.partition_key
    recipe = house.recipe(key)
    base = house.store.fetch(house.catalog.head(key, "pinned_base"))
    curated = house.catalog.head(key, "curated_dataset")
    job = encode_job(recipe, curated=curated, base=base, work=house.settings.work, placement=house.placement)
    reused = house.store.manifest(job.spec.kind, job.spec.fingerprint) is not None
    artifact = house.worker.run(job, house.listener)
    house.catalog.set_head(key, "packed_shards", artifact, run_id=context.run.run_id)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata={**_metadata(house, artifact), "reused": dg.MetadataValue.bool(reused)},
        check_results=[_check(artifact, recipe.encode.loss)],
    )


@dg.asset(
    key=REFERENCE_LOGPROBS, deps=[PACKED_SHARDS, PINNED_BASE], partitions_def=recipes, group_name="encode", pool="gpu-train",
    kinds={"pytorch", "parquet"}, owners=["team:ml-platform"], required_resource_keys={"house"},
    description="What the frozen reference thinks of each completion (dpo, kto), computed once so that one model trains. Other methods "
    "need none: materialized at once as not needed.",
)  # fmt: skip
def reference_logprobs(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Measures in a child process, or finds what the same rows and reference gave before.

    An output that is left out would skip everything behind it (Dagster 1.13: also deps without data), so a method without a reference
    materializes the fact that it needs none.
    """
    house: House = context.resources.house
    key = context.partition_key
    section = resolved(house.recipe(key), pin(house.catalog, key)).finetune
    if not needs_reference(section):
        return dg.MaterializeResult(
            data_version=dg.DataVersion(NOT_NEEDED),
            metadata={"needed": dg.MetadataValue.bool(False), "method": dg.MetadataValue.text(section.method)},
        )
    shards, base = (house.store.fetch(house.catalog.head(key, asset)) for asset in ("packed_shards", "pinned_base"))
    model = reference_model(section, base=base, find=house.find)
    job = reference_job(
        measure_of(section), shards=shards, reference=model, base=base, work=house.settings.work, placement=house.placement
    )  # fmt: skip
    reused = house.store.manifest(job.spec.kind, job.spec.fingerprint) is not None
    artifact = house.worker.run(job, house.listener)
    house.catalog.set_head(key, KIND, artifact, run_id=context.run.run_id)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata={
            "needed": dg.MetadataValue.bool(True),
            "digest": dg.MetadataValue.text(artifact.ref.digest),
            "dagster/uri": dg.MetadataValue.text(house.store.bucket.path(artifact.ref.path)),
            "dagster/row_count": dg.MetadataValue.int(artifact.manifest.counts["rows"]),
            "reference": dg.MetadataValue.text(f"{model.manifest.kind} {model.ref.digest}"),
            "reused": dg.MetadataValue.bool(reused),
        },
    )


def _metadata(house: House, artifact: Artifact) -> dict[str, dg.MetadataValue]:
    facts, counts = statistics(artifact), artifact.manifest.counts
    samples = json.loads(artifact.file(SAMPLE).read_text(encoding="utf-8"))
    return {
        "digest": dg.MetadataValue.text(artifact.ref.digest),
        "dagster/uri": dg.MetadataValue.text(house.store.bucket.path(artifact.ref.path)),
        "dagster/row_count": dg.MetadataValue.int(counts["rows"]),
        **{name: dg.MetadataValue.int(number) for name, number in counts.items()},
        "window_fill_percent": dg.MetadataValue.float(round(100 * facts["fill"], 2)),
        "trained_percent": dg.MetadataValue.float(round(100 * facts["trained_share"], 2)),
        "splits": dg.MetadataValue.md(figures.split_table(facts["splits"])),
        "rejected": dg.MetadataValue.json(facts["rejected"]),
        "samples": dg.MetadataValue.md(figures.samples_picture(samples)),
        "lengths": dg.MetadataValue.md(
            figures.length_histogram(facts["length_histogram"], window_tokens=facts["window_tokens"])
        ),
        "mask road": dg.MetadataValue.text(facts["road"]),
    }


def _check(artifact: Artifact, loss: str) -> dg.AssetCheckResult:
    facts = statistics(artifact)
    fault = mask_fault(facts, loss=loss)
    return dg.AssetCheckResult(
        check_name="loss_mask",
        passed=fault is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=fault or f"{facts['trained_share']:.1%} of the tokens are trained",
        metadata={"trained_percent": dg.MetadataValue.float(100 * facts["trained_share"])},
    )


defs = dg.Definitions(assets=[packed_shards, reference_logprobs])
