"""What starts work without a person: the recipe sync, the retraining schedules, and the jobs that they and people launch."""

from __future__ import annotations

import hashlib

import dagster as dg

from ft_pipeline import recipe, resources, settings
from ft_pipeline.errors import UserError
from ft_pipeline.partitions import (
    ADAPTER,
    BASE_MODEL,
    CHECKPOINTS,
    CURATED_DATASET,
    EVAL_REPORT,
    JOB_TAG,
    PACKED_SHARDS,
    RAW_DATASET,
    RECIPE_TAG,
    REGISTERED_MODEL,
    TENANT_TAG,
    recipes,
)
from ft_pipeline.recipe import Recipe, recipe_sha256

fine_tune = dg.define_asset_job(
    "fine_tune",
    selection=dg.AssetSelection.all(),
    description="The whole road for one recipe: raw rows to a deployed adapter. What is unchanged is reused.",
)
prepare_data = dg.define_asset_job(
    "prepare_data",
    selection=dg.AssetSelection.assets(RAW_DATASET, CURATED_DATASET, PACKED_SHARDS).upstream(),
    description="Only the data rooms: acquire, curate, encode.",
)
evaluate = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.assets(BASE_MODEL, EVAL_REPORT, REGISTERED_MODEL),
    description="Examine the present adapter again against the live base model.",
)
train = dg.define_asset_job(
    "train",
    selection=dg.AssetSelection.assets(CHECKPOINTS, ADAPTER),
    description="Only the training room, on the shards that are there.",
)


def tags_of(found: Recipe, job_id: str) -> dict[str, str]:
    """The tags by which runs are found and limited: tenant, recipe digest, job id."""
    return {TENANT_TAG: found.tenant, RECIPE_TAG: recipe_sha256(found), JOB_TAG: job_id}


def known_recipes() -> tuple[list[Recipe], list[str]]:
    """The recipes of the folders, and in words those files that are none. One model line is one recipe: the first file has it."""
    found: dict[str, Recipe] = {}
    refused = []
    for path in resources.recipe_files(settings.load()).values():
        try:
            made = recipe.read(path)
        except UserError as error:
            refused.append(error.what)
            continue
        if found.setdefault(made.key, made) is not made:
            refused.append(f"{path} is a second recipe of {made.key}: give it another name")
    return list(found.values()), refused


@dg.sensor(
    name="recipe_sync",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every recipe file becomes a partition `tenant/name`. A file that is no recipe is named in the tick.",
)
def recipe_sync(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    found, refused = known_recipes()
    there = set(context.instance.get_dynamic_partitions("recipes"))
    new = sorted({r.key for r in found} - there)
    if refused:
        context.log.warning("not recipes: " + "; ".join(refused))
    if not new:
        return dg.SkipReason(
            f"{len(found)} recipes, all known" + (f"; refused: {'; '.join(refused)}" if refused else "")
        )
    return dg.SensorResult(dynamic_partitions_requests=[recipes.build_add_request(new)])


def schedule_name(key: str) -> str:
    """A Dagster name of a model line: letters, digits and underscores only, and no two lines share one."""
    plain = key.replace("/", "__").replace("-", "_")
    readable = plain.replace("__", "/").replace("_", "-") == key
    return f"retrain_{plain}" + ("" if readable else f"_{hashlib.sha256(key.encode()).hexdigest()[:8]}")


def retraining_schedule(found: Recipe) -> dg.ScheduleDefinition:
    """The schedule of one recipe. A retraining whose data and base are unchanged reuses every artifact: it costs seconds."""

    def request(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        moment = context.scheduled_execution_time.strftime("%Y%m%dT%H%M")
        job_id = "ftjob-" + hashlib.sha256(f"{found.key}@{moment}".encode()).hexdigest()[:16]
        return dg.RunRequest(run_key=job_id, partition_key=found.key, tags=tags_of(found, job_id))

    return dg.ScheduleDefinition(
        name=schedule_name(found.key),
        cron_schedule=found.schedule,
        job=fine_tune,
        execution_fn=request,
        description=f"Retrains {found.key}: {found.description}",
    )


def defs() -> dg.Definitions:
    """Jobs, the sync sensor and one schedule for each recipe that asks for it."""
    scheduled = [retraining_schedule(r) for r in known_recipes()[0] if r.schedule]
    return dg.Definitions(jobs=[fine_tune, prepare_data, train, evaluate], sensors=[recipe_sync], schedules=scheduled)
