"""The door of serve: a version in production is verified to its raw bytes and answers; the record says what is live."""

import dagster as dg

from ft_pipeline.errors import FtError
from ft_pipeline.partitions import DEPLOYMENT, REGISTERED_MODEL, recipes
from ft_pipeline.serve.deploy import deploy, live, record


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
    signed_by = ""
    try:
        if version.stage == "production":
            signed_by = deploy(version, catalog=house.catalog, store=house.store, settings=house.settings).signed_by
    except FtError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    live_now = live(house.catalog)
    artifact = record(version, registered, store=house.store, live_now=live_now)
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
            "digest": artifact.ref.digest,
            "chat": dg.MetadataValue.md(f"`ft-pipeline chat {version.line}`"),
            "dagster/uri": str(artifact.folder),
        },
    )


defs = dg.Definitions(assets=[deployment])
