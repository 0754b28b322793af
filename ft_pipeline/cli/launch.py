"""Runs a recipe through Dagster in this process, into the persistent local instance: the same assets, checks and history as in the UI."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

from ft_pipeline import definitions
from ft_pipeline.automation import tags_of
from ft_pipeline.errors import DataError, FtError, GateRefused, Interrupted
from ft_pipeline.partitions import recipes
from ft_pipeline.recipe import Recipe
from ft_pipeline.resources import House, Mark, base_marks
from ft_pipeline.settings import PACKAGE, PROJECT, Settings
from ft_pipeline.store.files import clear_errors, storage_error

GATE_CHECK = "gate"
PROCESS_TAG = "ft/process"
"""`node/process id` of a run inside a command: when that process is gone, the run is over."""
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Launched:
    """How a run ended."""

    run_id: str
    passed: bool
    failed_check: str | None
    """What the blocking check said, when one stopped the run."""
    seconds: float


def dagster_yaml() -> Path:
    """The embedded instance's configuration: of the checkout, else of the installed package."""
    return next(p for p in (PROJECT / "dagster.yaml", PACKAGE / "dagster.yaml") if p.is_file())


def workspace_yaml() -> Path:
    """The workspace file, from the same places."""
    return next(p for p in (PROJECT / "workspace.yaml", PACKAGE / "workspace.yaml") if p.is_file())


def prepare_home(where: Settings) -> Path:
    """DAGSTER_HOME with our dagster.yaml in it, unless its owner put his own there."""
    where.dagster_home.mkdir(parents=True, exist_ok=True)
    target = where.dagster_home / "dagster.yaml"
    if not target.exists():
        shutil.copyfile(dagster_yaml(), target)
    return where.dagster_home


def launch(
    house: House, found: Recipe, *, until: tuple[str, ...] = (), only: tuple[str, ...] = (), job_name: str = "fine_tune",
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Launched:  # fmt: skip
    """Runs the whole road for a recipe. Raises the room's own FtError when a step fails; a refusing gate is a value.

    until: the assets behind which the road ends; only what leads to them is made. only: these assets, from what is there.
    job_name, config: another job, and asset -> what its run is asked.
    """
    house = replace(house, given={found.key: found})
    built = definitions.build(house)
    job = built.resolve_job_def(job_name)
    with (
        clear_errors(f"writing Dagster's history in {house.settings.dagster_home}"),
        dg.DagsterInstance.from_ref(_instance_ref(prepare_home(house.settings))) as instance,
    ):
        _end_dead_runs(instance)
        instance.add_dynamic_partitions(str(recipes.name), [found.key])
        result = job.execute_in_process(
            instance=instance,
            partition_key=found.key,
            tags={**tags_of(found, f"ftjob-{secrets.token_hex(8)}"), PROCESS_TAG: f"{platform.node()}/{os.getpid()}"},
            run_config=QUIET | {"ops": {name: {"config": dict(asked)} for name, asked in config.items()}},
            raise_on_error=False,
            asset_selection=_leading_to(built, until) if until else [dg.AssetKey(name) for name in only] or None,
        )
        record = instance.get_run_record_by_id(result.run_id)
    if not result.success:
        _raise_cause(result, found.key)
    seconds = (record.end_time or 0) - (record.start_time or 0) if record else 0.0
    return Launched(result.run_id, result.success, None if result.success else _check_text(result), seconds)


def marks(where: Settings, keys: Sequence[str]) -> dict[str, Mark]:
    """What Dagster knows of base changes of these model lines."""
    with dg.DagsterInstance.from_ref(_instance_ref(prepare_home(where))) as instance:
        _end_dead_runs(instance)
        return base_marks(instance, keys)


def _leading_to(built: dg.Definitions, assets: tuple[str, ...]) -> list[dg.AssetKey]:
    return sorted(dg.AssetSelection.assets(*assets).upstream().resolve(built.resolve_asset_graph()))


def _instance_ref(home: Path) -> InstanceRef:
    """The instance without captured output: its watching processes would answer Ctrl-C with tracebacks, and bars would come late."""
    module, name = NoOpComputeLogManager.__module__, NoOpComputeLogManager.__name__
    return InstanceRef.from_dir(str(home), overrides={"compute_logs": {"module": module, "class": name}})


def _end_dead_runs(instance: dg.DagsterInstance) -> None:
    """Says of runs whose process was killed that they failed: one that stays `started` would hold a place in the queue for ever."""
    unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
    for run in instance.get_runs(unfinished):
        node, _, process = run.tags.get(PROCESS_TAG, "").partition("/")
        if node == platform.node() and not _is_alive(int(process)):
            instance.report_run_failed(run, "Its process was killed; the same command resumes.")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _raise_cause(result: dg.ExecuteInProcessResult, key: str) -> None:
    """Raises what made a step fail, unless the gate did: then the caller shows what it says."""
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        error = event.step_failure_data.error
        while error and error.cause:
            error = error.cause
        if error and "AssetCheck" in (error.cls_name or ""):
            _raise_unless_gate(result, key)
            return
        if error and error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
            raise Interrupted(
                f"{key} was stopped",
                why="What is finished is in the store; training that had begun is in a checkpoint.",
                cure="run the same command again: it goes on from there",
            )
        raise _as_ft_error(error.cls_name or "error", error.message.strip()) if error else FtError("a step failed")
    raise FtError(f"run {result.run_id} of {key} failed outside its steps", cure="`make dev` shows the run's page")


def _raise_unless_gate(result: dg.ExecuteInProcessResult, key: str) -> None:
    if not any(e.check_name == GATE_CHECK for e in _failed_checks(result)):
        raise DataError(
            f"{key} was stopped by a check: {_check_text(result)}", cure="`make dev` shows the check with its numbers"
        )


def _as_ft_error(name: str, text: str) -> FtError:
    """The room's error from what Dagster kept of it (class name and text)."""
    from ft_pipeline import errors

    kind = getattr(errors, name, None)
    body = text.partition(": ")[2] if text.split(":")[0].endswith(name) else text
    what, _, rest = body.partition("\n")
    why, _, cure = rest.partition("Cure: ")
    if isinstance(kind, type) and issubclass(kind, FtError):
        return kind(what, why=why.strip("\n"), cure=cure.strip())
    bug = FtError(f"{name}: {body}", cure="this is a bug in ft_pipeline; the run's page in the UI has the whole trace")
    return storage_error(OSError(body), "running a step") or bug


def _check_text(result: dg.ExecuteInProcessResult) -> str:
    failed = _failed_checks(result)
    return "; ".join(f"{e.check_name}: {e.description or 'failed'}" for e in failed) or "a blocking check failed"


def _failed_checks(result: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
    return [e for e in result.get_asset_check_evaluations() if not e.passed and e.blocking]


def refused(found: Recipe, ended: Launched) -> GateRefused:
    """The error that a run ends with when its gate did not pass."""
    return GateRefused(
        f"{found.key} was not promoted: {ended.failed_check}",
        why="A model is registered only when every required gate passes.",
        cure=f"`ft-pipeline report {found.key}` shows each gate; change the recipe and run it again",
    )
