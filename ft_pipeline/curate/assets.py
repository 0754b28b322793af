"""The door of curate: rows fit to train on, in three splits, with a ledger of every row that is not."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg

from ft_pipeline.curate import consolidate, figures, limits, references
from ft_pipeline.curate.artifact import statistics_of
from ft_pipeline.curate.balance import balance
from ft_pipeline.curate.splits import leaks
from ft_pipeline.partitions import CURATED_DATASET, PINNED_BASE, RAW_DATASET, recipes
from ft_pipeline.resources import House
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.workers.pool import Pool

ROWS_KEPT = dg.AssetCheckSpec(
    name="rows_kept", asset=CURATED_DATASET, blocking=True, description="Rows are left to train on."
)
NO_LEAK = dg.AssetCheckSpec(
    name="no_leak_between_splits", asset=CURATED_DATASET, blocking=True,
    description="No cluster of near-equal rows is in two splits; counted anew from the stored files.",
)  # fmt: skip

ADDS_UP = dg.AssetCheckSpec(
    name="ledger_adds_up", asset=CURATED_DATASET, blocking=True,
    description="Every row that came in is in one split or in the ledger; counted anew from the stored files.",
)  # fmt: skip


@dg.asset(
    key=CURATED_DATASET, deps=[RAW_DATASET, PINNED_BASE], partitions_def=recipes, group_name="curate",
    kinds={"polars", "parquet"}, owners=["team:ml-platform"], required_resource_keys={"house"},
    code_version=consolidate.code_version(), check_specs=[ROWS_KEPT, NO_LEAK, ADDS_UP],
    description="Normalised, validated and deduplicated rows in train, validation and holdout; every other row is in the ledger "
    "with its reason. Of the base model only the control tokens of its tokenizer matter.",
)  # fmt: skip
def curated_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Curates the newest raw rows of the model line."""
    house: House = context.resources.house
    key = context.partition_key
    recipe, known = house.recipe(key), house.catalog.heads(key).get("curated_dataset")
    opened = references.opened(recipe.curate, settings=house.settings, store=house.store, listener=house.listener)
    curation = consolidate.curation_of(
        recipe,
        raw=house.catalog.head(key, "raw_dataset"),
        base=house.catalog.head(key, "pinned_base"),
        store=house.store,
        forgotten=house.catalog.forgotten(),
        **opened,
    )
    artifact = consolidate.curate(
        curation,
        store=house.store,
        workforce=Pool(limits.processes_within(house.placement.threads, house.settings.memory_gib)),
        memory_gib=house.settings.memory_gib,
        listener=house.listener,
    )
    house.catalog.set_head(key, "curated_dataset", artifact, run_id=context.run.run_id)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata={
            "digest": artifact.ref.digest,
            "dagster/uri": house.store.bucket.path(artifact.ref.path),
            "reused": known == artifact.ref,
            **_facts(artifact),
        },
        check_results=_checks(artifact),
    )


def _facts(artifact: Artifact) -> dict[str, Any]:
    numbers = statistics_of(artifact)
    return {
        "dagster/row_count": artifact.manifest.counts["rows_kept"],
        **artifact.manifest.counts,
        "conflicts": numbers["conflicts"]["pairs"],
        "safety_share": numbers["safety_share"],
        "largest_cluster": numbers["clusters"]["largest"],
        "reasons": dg.MetadataValue.md(figures.reason_table(numbers)),
        "dropped": dg.MetadataValue.md(figures.drop_chart(numbers["dropped_by_reason"])),
        "lengths": dg.MetadataValue.md(figures.length_chart(numbers["length_histogram"])),
        "clusters": dg.MetadataValue.md(figures.cluster_chart(numbers["clusters"]["sizes"])),
        "flags": dg.MetadataValue.md(figures.flag_table(artifact)),
        "conflict_examples": dg.MetadataValue.md(figures.conflict_table(artifact)),
        "contaminated_items": dg.MetadataValue.md(figures.item_table(artifact)),
        **_sources(numbers),
        "splits": dg.MetadataValue.md(figures.count_table(numbers["splits"], "split")),
        "layouts": dg.MetadataValue.md(figures.count_table(numbers["layouts"], "layout")),
        "samples": dg.MetadataValue.md(figures.sample_table(artifact)),
    }


def _sources(numbers: Mapping[str, Any]) -> dict[str, Any]:
    if len(numbers["sources"]) < 2:
        return {}
    return {"sources": dg.MetadataValue.md(figures.source_table(numbers["sources"]))}


def _checks(artifact: Artifact) -> list[dg.AssetCheckResult]:
    counts, leaking, rows = artifact.manifest.counts, leaks(artifact), balance(artifact)
    return [
        dg.AssetCheckResult(
            check_name=ROWS_KEPT.name, passed=counts["train"] > 0, metadata={"rows_kept": counts["rows_kept"]}
        ),
        dg.AssetCheckResult(
            check_name=NO_LEAK.name,
            passed=not leaking,
            metadata={"leaking_clusters": len(leaking), "examples": ", ".join(sorted(leaking)[:5]) or "none"},
        ),
        dg.AssetCheckResult(check_name=ADDS_UP.name, passed=rows.adds_up, metadata=asdict(rows)),
    ]


defs = dg.Definitions(assets=[curated_dataset])
