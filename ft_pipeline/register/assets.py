"""The door of register: an adapter with a passing report becomes a signed version in the catalog, and moves as far as its policy says."""

from functools import partial

import dagster as dg

from ft_pipeline.errors import FtError
from ft_pipeline.partitions import ADAPTER, EVAL_REPORT, REGISTERED_MODEL, recipes
from ft_pipeline.register import registry
from ft_pipeline.register.artifact import CARD
from ft_pipeline.register.chain import text_tree
from ft_pipeline.register.registration import Candidate, Outcome, register
from ft_pipeline.register.viewer import write_lineage


@dg.asset(
    key=REGISTERED_MODEL,
    deps=[ADAPTER, EVAL_REPORT],
    partitions_def=recipes,
    group_name="register",
    kinds={"mlflow", "sql"},
    owners=["team:ml-platform"],
    required_resource_keys={"house"},
    description="A version of the model line: catalog row with its whole lineage, model card, signed in-toto statement, stage.",
)
def registered_model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Refuses without a PASS on the live base; never retried, because evidence does not change by waiting."""
    house, key = context.resources.house, context.partition_key
    head = partial(house.catalog.head, key)
    try:
        candidate = Candidate(
            recipe=house.recipe(key),
            adapter=head("adapter"),
            report=head("eval_report"),
            base=head("base_model"),
            run_id=context.run.run_id,
        )
        outcome = register(candidate, store=house.store, catalog=house.catalog, settings=house.settings)
    except FtError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    house.catalog.set_head(key, "registered_model", outcome.artifact, run_id=context.run.run_id)
    mirrored = registry.mirror(house.catalog, key, house.settings)
    if not mirrored.ok:
        context.log.warning(f"MLflow has no mirror of {key}: {mirrored.text}")
    page = write_lineage(outcome.model.label, outcome.artifact.ref, store=house.store, settings=house.settings)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(outcome.artifact.ref.digest),
        metadata={**_metadata(outcome, mirrored), "lineage page": dg.MetadataValue.path(str(page))},
    )


def _metadata(outcome: Outcome, mirrored: registry.Mirrored) -> dict[str, dg.MetadataValue | str | int | float | bool]:
    model, artifact = outcome.model, outcome.artifact
    return {
        "model": model.label,
        "version": model.version,
        "stage": model.stage,
        "reused": outcome.reused,
        "policy": outcome.evidence.policy,
        "digest": artifact.ref.digest,
        "adapter": model.adapter_digest,
        "base": model.base_digest,
        "report": model.report_digest,
        "dataset": model.dataset_digest,
        "ancestors": artifact.manifest.counts["ancestors"],
        "model card": dg.MetadataValue.md(_without_front_matter(artifact.file(CARD).read_text(encoding="utf-8"))),
        "lineage": dg.MetadataValue.md(f"```text\n{text_tree(outcome.adapter)}\n```"),
        "mlflow": mirrored.text if mirrored.ok else f"not mirrored: {mirrored.text}",
        "mlflow_seconds": mirrored.seconds,
        "dagster/uri": str(artifact.folder),
    }


def _without_front_matter(card: str) -> str:
    """The card without what the UI cannot show: its head, and pictures that are files beside it."""
    lines = card.split("---\n", 2)[-1].lstrip().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("!["))


defs = dg.Definitions(assets=[registered_model])
