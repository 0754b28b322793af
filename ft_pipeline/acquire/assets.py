"""The door of acquire: raw rows, the base that a model line trains on, and the base that is out there now."""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from ft_pipeline.acquire import base_model as bases
from ft_pipeline.acquire import dataset, figures, watch
from ft_pipeline.acquire.artifact import DIGESTS, digests_of, source_of, sources_of
from ft_pipeline.acquire.places import place_name
from ft_pipeline.errors import NotFoundError
from ft_pipeline.partitions import BASE_MODEL, PINNED_BASE, RAW_DATASET, recipes
from ft_pipeline.resources import House
from ft_pipeline.store.artifacts import Artifact

OWNERS = ["team:ml-platform"]


@dg.asset(
    key=RAW_DATASET, partitions_def=recipes, group_name="acquire", kinds={"jsonl", "parquet"}, owners=OWNERS,
    required_resource_keys={"house"}, code_version=dataset.CODE,
    description="The bytes of the recipe's dataset as they are at the source, hashed before anything runs.",
)  # fmt: skip
def raw_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Copies the dataset into the store, or says that it is there already."""
    house: House = context.resources.house
    recipe = house.recipe(context.partition_key)
    artifact = dataset.acquire_all(recipe, settings=house.settings, store=house.store, listener=house.listener)
    files = [file for one in sources_of(house.store, artifact.ref) for file in source_of(one.artifact)["files"]]
    sizes = {f["name"]: f["bytes"] / 1e6 for f in files}
    sources = (recipe.dataset, *recipe.mix)
    pictures = {
        "files": dg.MetadataValue.md(figures.file_table(files)),
        "sizes": dg.MetadataValue.md(figures.bar_chart(sizes, title="Raw files", unit="MB")),
        "licence": ", ".join(dict.fromkeys(source.licence for source in sources)),
        "source": ", ".join(place_name(source.uri) for source in sources),
    }
    return _materialized(context, artifact, pictures)


@dg.asset(
    key=PINNED_BASE, partitions_def=recipes, group_name="acquire", kinds={"huggingface", "safetensors"}, owners=OWNERS,
    required_resource_keys={"house"}, code_version=bases.CODE,
    description="The base model that this model line trains on: pinned at first use, never moved by a new upload.",
)  # fmt: skip
def pinned_base(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Fetches the pinned revision."""
    house: House = context.resources.house
    source = house.recipe(context.partition_key).base_model
    revision = bases.pinned_revision(
        context.partition_key, source, settings=house.settings, catalog=house.catalog, listener=house.listener
    )
    artifact = bases.acquire(
        source, settings=house.settings, store=house.store, revision=revision, listener=house.listener
    )
    return _materialized(context, artifact, _base_facts(source.uri, revision, artifact))


@dg.asset(
    key=BASE_MODEL, partitions_def=recipes, group_name="acquire", kinds={"huggingface", "safetensors"}, owners=OWNERS,
    required_resource_keys={"house"}, code_version=bases.CODE,
    description="The base model as it is at its source now: when it moves, adapters are judged again, never retrained silently.",
)  # fmt: skip
def base_model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Resolves the source's current revision and fetches it. Its data version is what the watch sensor compares: the revision."""
    house: House = context.resources.house
    source = house.recipe(context.partition_key).base_model
    # before the bytes: what moves while they are fetched is seen at the next look
    version = watch.bucket_version(source, house.settings)
    revision = bases.resolve_revision(source, settings=house.settings, listener=house.listener)
    artifact = bases.acquire(
        source, settings=house.settings, store=house.store, revision=revision, listener=house.listener
    )
    facts = _base_facts(source.uri, revision, artifact) | {"changed": _changed(context, artifact)}
    return _materialized(context, artifact, facts, version=version or revision)


def _changed(context: dg.AssetExecutionContext, artifact: Artifact) -> str:
    """The file classes in which this base differs from the one that was live before."""
    house: House = context.resources.house
    before = house.catalog.heads(context.partition_key).get(context.asset_key.to_user_string())
    if before is None or before == artifact.ref:
        return "nothing"
    try:
        old = json.loads(house.store.fetch_file(before, DIGESTS).read_bytes())
    except NotFoundError:
        return "unknown: the base before is no longer in the store"
    return ", ".join(kind for kind, digest in digests_of(artifact).items() if old.get(kind) != digest) or "nothing"


def _base_facts(uri: str, revision: str, artifact: Artifact) -> dict[str, Any]:
    sizes = {name: entry.size / 1e6 for name, entry in artifact.manifest.files.items()}
    return {
        "revision": revision,
        "source": uri,
        "digests": dg.MetadataValue.md(figures.digest_table(digests_of(artifact))),
        "sizes": dg.MetadataValue.md(figures.bar_chart(sizes, title="Files of the base model", unit="MB")),
    }


def _materialized(
    context: dg.AssetExecutionContext, artifact: Artifact, facts: Mapping[str, Any], *, version: str | None = None
) -> dg.MaterializeResult:
    """`version`: the data version where it is not the artifact's digest."""
    house: House = context.resources.house
    known = house.catalog.heads(context.partition_key).get(context.asset_key.to_user_string())
    house.catalog.set_head(
        context.partition_key, context.asset_key.to_user_string(), artifact, run_id=context.run.run_id
    )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version or artifact.ref.digest),
        metadata={
            "digest": artifact.ref.digest,
            "dagster/uri": house.store.bucket.path(artifact.ref.path),
            "reused": known == artifact.ref,
            **artifact.manifest.counts,
            **facts,
        },
    )


defs = dg.Definitions(assets=[raw_dataset, pinned_base, base_model])
