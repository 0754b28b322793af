"""What the doors are given by parameter name: settings, the store, the catalog, the worker, the recipes, a listener."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.tags import RUN_KEY_TAG

from ft_pipeline import recipe, settings
from ft_pipeline.errors import NotFoundError, RecipeError, did_you_mean
from ft_pipeline.jobs.listener import JobListener, NotWanted
from ft_pipeline.partitions import BASE_MODEL, EVAL_REPORT, JOB_TAG
from ft_pipeline.recipe import Recipe
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store, open_store
from ft_pipeline.store.catalog import Catalog, open_catalog
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import TrainingJob
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.messages import Listener, ignore
from ft_pipeline.workers.placed import PlacedWorker, Worker, placement_of, read_placement

STATUS = dg.DagsterRunStatus
UNFINISHED = [STATUS.QUEUED, STATUS.NOT_STARTED, STATUS.MANAGED, STATUS.STARTING, STATUS.STARTED]


@dataclass(frozen=True)
class House:
    """Everything a door needs that is not an asset. One object, so that a test or the CLI can hand in its own."""

    settings: Settings
    store: Store
    catalog: Catalog
    worker: Worker
    placement: Placement = field(default_factory=Placement)
    listener: Listener = ignore
    given: Mapping[str, Recipe] = field(default_factory=dict)
    """Key -> a recipe that is not looked up: one of a file outside the recipe folders."""

    def recipe(self, key: str) -> Recipe:
        """The recipe of a partition `tenant/name`. Raises NotFoundError."""
        return self.given.get(key) or find_recipe(self.settings, key)

    def find(self, digest_or_prefix: str) -> Artifact:
        """The artifact whose digest starts so, its files verified. Raises NotFoundError, UserError, IntegrityError."""
        return self.store.fetch(self.catalog.ref(digest_or_prefix))


def find_recipe(where: Settings, name: str) -> Recipe:
    """The recipe of a file, a file stem or a key `tenant/name`. Raises NotFoundError with the nearest name, RecipeError."""
    return recipe.read(recipe_path(where, name))


def recipe_path(where: Settings, name: str) -> Path:
    """The file that a file name, a file stem or a key `tenant/name` means. Raises NotFoundError with the nearest name."""
    known = recipe_files(where)
    if name in known or name.endswith((".yaml", ".yml")):
        return known.get(name) or Path(name)
    keys: dict[str, Path] = {}
    refused = []
    for path in known.values():
        try:
            keys.setdefault(recipe.read(path).key, path)
        except RecipeError as error:
            refused.append(error.what)
    if name in keys:
        return keys[name]
    raise NotFoundError(
        f"no recipe {name!r}: {did_you_mean(name, [*known, *keys])}",
        why=f"These files are no recipes: {'; '.join(refused)}" if refused else "",
        cure="`ft-pipeline recipes` lists them; FT_RECIPES adds folders",
    )


def recipe_files(where: Settings) -> dict[str, Path]:
    """File stem -> path of every recipe file; a folder earlier in the settings comes first and wins."""
    known: dict[str, Path] = {}
    for folder in where.recipe_folders:
        for path in sorted(folder.glob("*.yaml"), key=lambda p: p.stem):
            known.setdefault(path.stem, path)
    return known


def open_house(*, listener: Listener = ignore, placement: Placement | None = None) -> House:
    """The house as the environment describes it."""
    where = settings.load()
    store = open_store(where)
    return House(
        settings=where,
        store=store,
        catalog=open_catalog(where),
        worker=PlacedWorker(where, store),
        placement=placement or _placement(where),
        listener=listener,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """What Dagster knows of a model line's base and the catalog does not."""

    version: str
    """Newest data version of `base_model`."""
    recorded_only: bool
    """The watch recorded it and no run has fetched it yet."""
    running: bool
    """A run that judges the line is queued or under way."""


def base_marks(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, Mark]:
    """The marks of these model lines; none for a line whose base was never materialized."""
    running = dg.RunsFilter(statuses=UNFINISHED)
    judging = {run.tags.get("dagster/partition") for run in instance.get_runs(running) if _judges(run)}
    found = {}
    for key in keys:
        record = instance.get_latest_data_version_record(BASE_MODEL, partition_key=key)
        event = record.asset_materialization if record else None
        if record is not None and event is not None:
            version = (event.tags or {}).get("dagster/data_version", "")
            found[key] = Mark(version=version, recorded_only=not record.run_id, running=key in judging)
    return found


def _judges(run: dg.DagsterRun) -> bool:
    return run.asset_selection is None or EVAL_REPORT in run.asset_selection


def _placement(where: Settings) -> Placement:
    """As the settings say, or the file that they name."""
    said: dict[str, Any] = {"threads": where.threads, "processes": where.processes, "sharding": where.sharding}
    return Placement(**said) if where.placement is None else read_placement(where.placement, **said)


def _house_of_a_run(context: dg.InitResourceContext) -> Iterator[House]:
    """A house whose worker knows a cancelled run from an orchestrator that is moved: Dagster interrupts both alike.

    The run of a job has the recipe and the placement of its row, and writes what happens into it.
    """
    house, instance, begun = open_house(), context.instance, context.run

    def is_cancelled() -> bool:
        run = instance.get_run_by_id(begun.run_id) if instance is not None and begun is not None else None
        return run is None or run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)

    house = replace(house, worker=PlacedWorker(house.settings, house.store, is_cancelled))
    job = _job_of(house, begun.tags) if begun is not None else None
    if job is None:
        yield house
        return
    house = _for_job(house, job)
    if begun is None or begun.parent_run_id is not None:  # made again by a person: the job's history is not his
        yield house
        return
    listener = _listener(house, job, begun.tags.get(RUN_KEY_TAG))
    try:
        yield replace(house, listener=listener)
    finally:
        listener.close()


def _job_of(house: House, tags: Mapping[str, str]) -> TrainingJob | None:
    """The job that a run is for; None for a run that a person or a schedule started."""
    try:
        return Records(house.catalog.engine).job(tags.get(JOB_TAG, ""))
    except NotFoundError:
        return None


def _for_job(house: House, job: TrainingJob) -> House:
    """With the recipe and the placement of the row. What the placement leaves open is as the administrator's says."""
    found = recipe.parse(json.loads(job.recipe), origin=f"the recipe of {job.id}")
    plain = Placement()
    said = {f.name: getattr(house.placement, f.name) for f in fields(Placement)}
    defaults = {name: value for name, value in said.items() if value != getattr(plain, name)}
    return replace(house, given={job.line: found}, placement=placement_of(job.placement, **defaults))


def _listener(house: House, job: TrainingJob, run_key: str | None) -> JobListener:
    """Raises NotWanted for a run that came too late: the job was cancelled, or another launch is under way."""
    if not job.is_live or run_key != job.run_key:
        raise NotWanted(f"{job.id} is {job.status} at {job.run_key}: this run is of {run_key} and not wanted any more")
    return JobListener(records=Records(house.catalog.engine), job_id=job.id, attempt=job.attempt)


def build(house: House | None = None) -> dict[str, Any]:
    """Dagster resources: `house`, opened when a run starts so that a code location loads without a database."""
    if house is not None:
        return {"house": dg.ResourceDefinition.hardcoded_resource(house)}
    return {"house": dg.ResourceDefinition(resource_fn=_house_of_a_run)}
