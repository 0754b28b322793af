"""The door of register: an adapter with a passing report becomes a signed version in the catalog, and moves as far as its policy says.

A person moves it on by the jobs below, whoever opens Dagster's launchpad: who it is, is what is typed there. History says
`dagster:NAME`, so that it can be told from a login or an API key. Where that is too little, put a proxy that knows people before
the web server, or keep these jobs from the launchpad and use the API.
"""

from collections.abc import Callable
from functools import partial

import dagster as dg
from pydantic import Field

from ft_pipeline.errors import FtError
from ft_pipeline.partitions import ADAPTER, EVAL_REPORT, MODEL_TAG, REGISTERED_MODEL, TENANT_TAG, recipes
from ft_pipeline.register import acts, registry
from ft_pipeline.register.artifact import CARD
from ft_pipeline.register.chain import text_tree
from ft_pipeline.register.registration import Candidate, Outcome, register
from ft_pipeline.register.viewer import write_lineage
from ft_pipeline.store.catalog import Transition


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


class Act(dg.Config):
    """What the launchpad asks for."""

    model: str = Field(description="`tenant/name@N`")
    actor: str = Field(description="Your name. History says `dagster:NAME`: nobody checks it here.")
    reason: str = Field(description="Goes into the append-only history.")


class Promotion(Act):
    """As Act, with where to."""

    stage: str = Field(default="", description="dev, staging or production; empty: the next one.")


class Rollback(Act):
    """As Act; a line goes back by one version, a version comes back itself."""

    model: str = Field(description="`tenant/name`, or `tenant/name@N` for a version that was in production before")


@dg.op(required_resource_keys={"house"}, description="Moves a version on; production by two people only asks for it.")
def promote_version(context: dg.OpExecutionContext, config: Promotion) -> None:
    """Refuses without a passing report."""
    _act(context, config, partial(acts.promote, to_stage=config.stage or None))


@dg.op(required_resource_keys={"house"}, description="Completes what somebody else asked for.")
def approve_version(context: dg.OpExecutionContext, config: Act) -> None:
    """Refuses the one who asked, and what changed since."""
    _act(context, config, acts.approve)


@dg.op(required_resource_keys={"house"}, description="Brings back what was in production before.")
def rollback_version(context: dg.OpExecutionContext, config: Rollback) -> None:
    """A running server follows within a second."""
    _act(context, config, acts.rollback)


@dg.op(required_resource_keys={"house"}, description="Takes a version out of service for good.")
def archive_version(context: dg.OpExecutionContext, config: Act) -> None:
    """Undeployed everywhere first."""
    _act(context, config, acts.archive)


def _act(context: dg.OpExecutionContext, config: Act, act: Callable[..., object]) -> None:
    """Does it as the named person, tags the run with the model, and shows the move on the page of the asset."""
    house, line = context.resources.house, config.model.partition("@")[0]
    context.instance.add_run_tags(context.run_id, {TENANT_TAG: line.partition("/")[0], MODEL_TAG: config.model})
    if not config.actor.strip():
        raise dg.Failure(description="actor is empty: every move has a person", allow_retries=False)
    try:
        made = act(
            config.model, actor=f"dagster:{config.actor.strip()}", reason=config.reason, catalog=house.catalog, store=house.store,
            settings=house.settings,
        )  # fmt: skip
    except FtError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    context.log_event(dg.AssetObservation(REGISTERED_MODEL, partition=line, metadata=_told(made)))
    mirrored = registry.mirror(house.catalog, line, house.settings)
    if not mirrored.ok:
        context.log.warning(f"MLflow has no mirror of {line}: {mirrored.text}")


def _told(made: object) -> dict[str, str]:
    if isinstance(made, Transition):
        moved = {"model": made.model, "moved": f"{made.from_stage} > {made.to_stage}", "actor": made.actor}
        return {**moved, "approved by": made.approved_by or "", "reason": made.reason}
    assert isinstance(made, acts.Request)
    waits = f"`ft-pipeline approve {made.model}`, or the job approve, by somebody else"
    return {"model": made.model, "asked by": made.actor, "reason": made.reason, "waits for": waits}


def _job(op: dg.OpDefinition, name: str) -> dg.JobDefinition:
    """A job of one op, in the process of the run: it takes milliseconds."""

    @dg.job(name=name, description=op.description, executor_def=dg.in_process_executor)
    def one() -> None:
        op()

    return one


jobs = [
    _job(promote_version, "promote"),
    _job(approve_version, "approve"),
    _job(rollback_version, "rollback"),
    _job(archive_version, "archive"),
]
defs = dg.Definitions(assets=[registered_model], jobs=jobs)
