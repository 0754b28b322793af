"""What starts work without a person: the recipe sync, the watch over base models, retraining schedules, and the jobs that they launch."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from ft_pipeline import costs, recipe, resources, runs, settings
from ft_pipeline.acquire import watch
from ft_pipeline.errors import FtError, UserError
from ft_pipeline.gate.bump import proposals
from ft_pipeline.partitions import (
    ADAPTER,
    BASE_MODEL,
    BUMP_STATUS,
    CHECKPOINTS,
    CURATED_DATASET,
    EVAL_REPORT,
    EXPORTED_MODEL,
    JOB_TAG,
    PACKED_SHARDS,
    RAW_DATASET,
    RECIPE_TAG,
    REFERENCE_LOGPROBS,
    REGISTERED_MODEL,
    TENANT_TAG,
    recipes,
)
from ft_pipeline.recipe import Recipe, recipe_sha256
from ft_pipeline.settings import Settings

MOST_EVENTS = 200
"""Base changes that one tick of the watch records; the rest follows at the next tick, because the watch is level-triggered."""
TRIGGER_TAG = "ft/trigger"
BASE_CHANGED, RETRAINING = "base_model_sha", "base_change_retraining"
DATA_VERSION_TAG = "dagster/data_version"
IN_A_RUN = {"dagster/partition"}
"""Tags of every run of a partition. What the watch records is in no run."""

C = dg.AutomationCondition
_BY_A_RUN = C.newly_updated() & C.any_new_update_has_run_tags(tag_keys=IN_A_RUN)
_RECORDED = C.data_version_changed() & ~C.any_new_update_has_run_tags(tag_keys=IN_A_RUN)
_JUDGED = C.newly_updated() & C.any_new_update_has_run_tags(tag_values={TRIGGER_TAG: BASE_CHANGED})
MIRROR = (_RECORDED.since(C.newly_requested() | _BY_A_RUN) & ~C.in_progress()).with_label(
    "the watch recorded another base: fetch it"
)
REEVALUATE = (
    C.any_deps_match(C.data_version_changed()).allow(dg.AssetSelection.assets(BASE_MODEL)).since_last_handled()
    & ~C.any_deps_missing()
    & ~C.any_deps_in_progress()
    & ~C.in_progress()
).with_label("the base moved: judge the adapter again")
PROMOTE = (
    C.any_deps_match(_JUDGED).allow(dg.AssetSelection.assets(EVAL_REPORT)).since_last_handled()
    & C.all_deps_blocking_checks_passed()
    & ~C.any_deps_missing()
    & ~C.any_deps_in_progress()
    & ~C.in_progress()
).with_label("a report passed: register it")
SHOW = (
    C.any_deps_match(_RECORDED | _JUDGED).since_last_handled() & ~C.any_deps_in_progress() & ~C.in_progress()
).with_label("a base moved, or an adapter was judged on it: show what is open")
CONDITIONS: Mapping[dg.AssetKey, dg.AutomationCondition] = {
    BASE_MODEL: MIRROR,
    EVAL_REPORT: REEVALUATE,
    REGISTERED_MODEL: PROMOTE,
    BUMP_STATUS: SHOW,
}
"""Asset -> what asks for it without a person. None of them trains."""

fine_tune = dg.define_asset_job(
    "fine_tune",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(BUMP_STATUS, EXPORTED_MODEL),
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
    selection=dg.AssetSelection.assets(REFERENCE_LOGPROBS, CHECKPOINTS, ADAPTER),
    description="Only what runs the model, on the shards that are there: the reference where the method has one, and training.",
)

export_model = dg.define_asset_job(
    "export_model",
    selection=dg.AssetSelection.assets(EXPORTED_MODEL),
    description="Merged or quantised weights of a registered version, each judged and compared; formats are in the run's config.",
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


def base_model_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One look at every base that a recipe has run on. The cursor only holds what was seen; what is new is told by the history."""
    where, seen = settings.load(), json.loads(context.cursor or "{}")
    on: dict[str, list[Recipe]] = {}
    for found in known_recipes()[0]:
        on.setdefault(watch.source_key(found.base_model), []).append(found)
    events: list[dg.AssetMaterialization] = []
    told, now_seen = [], {}
    for base, recipes_on in on.items():
        if not (known := _known(context.instance, recipes_on)):
            continue
        try:
            now_seen[base] = entry = _look(recipes_on[0], where, seen.get(base))
        except FtError as error:
            context.log.warning(f"{base}: {error.what}")
            now_seen |= {base: seen[base]} if base in seen else {}
            continue
        if entry["sha"]:
            moved = [found for found in recipes_on if known.get(found.key, entry["sha"]) != entry["sha"]]
            events += [_event(r, entry["sha"], known[r.key]) for r in moved[: MOST_EVENTS - len(events)]]
            told += [f"{base} is now {entry['sha'][:12]}: {len(moved)} recipes"] if moved else []
    context.log.info("; ".join(told) or f"{len(now_seen)} bases, none moved")
    return dg.SensorResult(asset_events=events, cursor=json.dumps(now_seen))


def _look(found: Recipe, where: Settings, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """{signature, since, sha} of a base: the sha once the signature has stayed for the debounce, read only then. Raises FtError."""
    signature = watch.signature(found.base_model, where)
    entry: dict[str, Any] = {"signature": signature, "since": time.time(), "sha": None}
    if before and before["signature"] == signature:
        entry = dict(before)
    if entry["sha"] is None and time.time() - entry["since"] >= where.base_debounce_seconds:
        entry["sha"] = watch.live_version(found.base_model, where)
    return entry


def _known(instance: dg.DagsterInstance, on: list[Recipe]) -> dict[str, str]:
    """Model line -> the newest data version of its base. A line that never ran has none, and nobody looks for its base."""
    records = {r.key: instance.get_latest_data_version_record(BASE_MODEL, partition_key=r.key) for r in on}
    events = {key: record.asset_materialization for key, record in records.items() if record}
    return {key: (event.tags or {}).get(DATA_VERSION_TAG, "") for key, event in events.items() if event}


def _event(found: Recipe, sha: str, before: str) -> dg.AssetMaterialization:
    """What the watch records for one model line: in no run, with the version that makes what follows stale."""
    return dg.AssetMaterialization(
        BASE_MODEL, partition=found.key, description=f"{found.base_model.uri} moved",
        metadata={"source": found.base_model.uri, "revision": sha, "before": before or "unknown"},
        tags={DATA_VERSION_TAG: sha, "dagster/data_version_is_user_provided": "true", TRIGGER_TAG: BASE_CHANGED},
    )  # fmt: skip


def base_sensors(every_seconds: int) -> list[dg.SensorDefinition]:
    """The watch, and the judge of what it records."""
    watcher = dg.SensorDefinition(
        name="base_model_watch", evaluation_fn=base_model_watch, minimum_interval_seconds=every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks where base models come from. One that moved, and stayed so, is recorded for the recipes on it; nothing trains.",
    )  # fmt: skip
    judge = dg.AutomationConditionSensorDefinition(
        "recertification", target=dg.AssetSelection.assets(*CONDITIONS), minimum_interval_seconds=every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING, emit_backfills=True,
        run_tags={"dagster/priority": "-5", TRIGGER_TAG: BASE_CHANGED},
        description="Judges every adapter of a base that moved, on the new base; registers what is recertified.",
    )  # fmt: skip
    return [watcher, judge]


@dg.sensor(
    name="base_change_retraining",
    job=fine_tune,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts the training that a base change proposes, for recipes that say `on_base_change: retrain`; others only show it.",
)
def base_change_retraining(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    found = {r.key: r for r in known_recipes()[0] if r.on_base_change == "retrain"}
    if not found:
        return dg.SensorResult()
    house = resources.open_house()
    requests = []
    for proposal in proposals.proposed(house.catalog, house.store, found.values()):
        proposals.repin(house.catalog, proposal)
        run_key = f"{proposal.key}:{proposal.revision}"
        job_id = "ftjob-" + hashlib.sha256(run_key.encode()).hexdigest()[:16]
        tags = tags_of(found[proposal.key], job_id) | {TRIGGER_TAG: RETRAINING}
        requests.append(dg.RunRequest(run_key=run_key, partition_key=proposal.key, tags=tags))
    house.catalog.close()
    return dg.SensorResult(run_requests=requests)


def with_conditions(made: dg.Definitions) -> dg.Definitions:
    """The definitions with the condition of each asset that has one."""

    def conditioned(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(automation_condition=CONDITIONS[spec.key])

    with warnings.catch_warnings():
        # stable enough: what it gives is compared with the reviewed graph in test_asset_graph.py
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return made.map_resolved_asset_specs(func=conditioned, selection=dg.AssetSelection.assets(*CONDITIONS))


def defs() -> dg.Definitions:
    """Jobs, the sensors and one schedule for each recipe that asks for it."""
    scheduled = [retraining_schedule(r) for r in known_recipes()[0] if r.schedule]
    sensors = [recipe_sync, *base_sensors(settings.load().base_watch_seconds), base_change_retraining]
    sensors += [runs.queue_sensor(fine_tune), costs.budget_guard(), costs.job_costs()]
    return dg.Definitions(
        jobs=[fine_tune, prepare_data, train, evaluate, export_model], sensors=sensors, schedules=scheduled
    )
