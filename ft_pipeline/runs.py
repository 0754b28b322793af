"""Jobs as runs of Dagster: the request for a run, what became of it, and how it is stopped. What the queue knows of Dagster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.definitions.target import ExecutableDefinition
from dagster._core.events import DagsterEventType
from dagster._core.storage.tags import MAX_RETRIES_TAG, RUN_KEY_TAG
from dagster._utils.error import SerializableErrorInfo

from ft_pipeline import errors, settings
from ft_pipeline.billing.budget import holds
from ft_pipeline.errors import FtError, GateRefused, Interrupted, StorageError
from ft_pipeline.jobs.dispatch import Ending, Phase, RunState, tick
from ft_pipeline.jobs.queue import Rules
from ft_pipeline.partitions import JOB_TAG, RECIPE_TAG, REGISTERED_MODEL, TENANT_TAG, recipes
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.settings import Settings
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.open import Records, open_records
from ft_pipeline.store.platform.rows import TrainingJob

GATE, COMPLETE = "gate", "complete"
"""Checks (gate/assets.py, finetune/assets.py) that say what became of a training."""
STATUS = dg.DagsterRunStatus
PHASES: Mapping[dg.DagsterRunStatus, Phase] = {
    STATUS.STARTED: "going",
    STATUS.CANCELING: "stopping",
    STATUS.SUCCESS: "ended",
    STATUS.FAILURE: "ended",
    STATUS.CANCELED: "ended",
}
"""Every other status: the run has not begun."""
SERVER_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+([\w.@+-]+)")
"""An absolute path in a sentence; not a part of a URL."""
TOLD = {
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.ASSET_CHECK_EVALUATION,
    DagsterEventType.ASSET_MATERIALIZATION,
}
PASSING = {
    Interrupted.__name__, StorageError.__name__, dg.DagsterExecutionInterruptedError.__name__, "KeyboardInterrupt", "NotWanted",
    "ChildProcessCrashException", "ChildProcessException",
}  # fmt: skip
"""Errors after which the same launch may go on from its checkpoints: it was stopped, its process was killed, a disk did not answer."""


def queue_sensor(job: ExecutableDefinition) -> dg.SensorDefinition:
    """The dispatcher as a sensor: each tick is one look of jobs/dispatch.py. Dagster's own loop looks every five seconds."""

    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        where = settings.load()
        records = open_records(where)
        launcher = DagsterRuns(context.instance)
        try:
            done = tick(records, launcher, rules_of(where, records, context.instance), clock=lambda: datetime.now(UTC))
        finally:
            records.close()
        if told := done.told():
            context.log.info(told)
        return dg.SensorResult(run_requests=launcher.requests)

    return dg.SensorDefinition(
        name="job_queue", job=job, evaluation_fn=look, minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Starts queued jobs of the platform where limits allow, follows their runs to the end, cancels and pauses them.",
    )  # fmt: skip


def rules_of(where: Settings, records: Records, instance: dg.DagsterInstance) -> Rules:
    """What the platform allows now. A run that Dagster would only queue has no place, so its limit is ours too."""
    queue = instance.get_concurrency_config().run_queue_config
    most = queue.max_concurrent_runs if queue is not None else -1
    places = where.concurrent_jobs if most < 0 else min(where.concurrent_jobs, most)
    return Rules(places=places, hold=holds(records, prices=read_prices(where.prices), moment=now()))


class DagsterRuns:
    """The queue's Launcher over a Dagster instance. A sensor hands `requests` to Dagster, which makes one run for each run_key."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.requests: list[dg.RunRequest] = []

    def launch(self, job: TrainingJob) -> None:
        """Requests a run of the job's line; the partition is made when it is new."""
        self.instance.add_dynamic_partitions(str(recipes.name), [job.line])
        tags = {
            JOB_TAG: job.id, TENANT_TAG: job.tenant, RECIPE_TAG: job.recipe_sha256,
            # a lost run goes back into the queue, where its wishes and limits are known: Dagster retries none
            MAX_RETRIES_TAG: "0",
        }  # fmt: skip
        self.requests.append(dg.RunRequest(run_key=job.run_key, partition_key=job.line, tags=tags))

    def states(self, jobs: Sequence[TrainingJob]) -> dict[str, RunState]:
        """By run_key. Runs are found by their id, those whose id is not known yet by Dagster's own tag of the run_key."""
        keys = {job.run_id: job.run_key for job in jobs if job.run_id}
        runs = self.instance.get_runs(dg.RunsFilter(run_ids=list(keys))) if keys else []
        found = {keys[run.run_id]: run for run in runs}
        for key in (job.run_key for job in jobs if job.run_id is None):
            for run in self.instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: key})):
                if run.parent_run_id is None:
                    found[key] = run
        return {key: RunState(run_id=r.run_id, phase=PHASES.get(r.status, "starting")) for key, r in found.items()}

    def stop(self, state: RunState) -> None:
        """A queued run is cancelled; a live one is interrupted: its worker saves a checkpoint, or deletes its Job in the cluster."""
        self.instance.run_coordinator.cancel_run(state.run_id)

    def ending(self, state: RunState) -> Ending:
        """From what the run reported of its assets and checks."""
        run = self.instance.get_run_by_id(state.run_id)
        if run is None or run.status == STATUS.CANCELED:
            return Ending(outcome="cancelled")
        return _Told(self.instance, run).ending()


class _Told:
    """The events of one ended run."""

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        self.is_success = run.status == STATUS.SUCCESS
        events = [record.dagster_event for record in instance.all_logs(run.run_id, of_type=TOLD)]
        self.events = [event for event in events if event is not None]

    def ending(self) -> Ending:
        model, gate = self._facts_of_model(), self._check(GATE)
        promotion: dict[str, Any] = {"blocked": model is None, **_verdict(gate)}
        failure = None if self.is_success else self._failure()
        if model is not None:
            # a deployment that failed afterwards takes nothing from what was trained and registered
            promotion |= {"stage": model["stage"], **({"deployment": failure[1]} if failure else {})}
            return self._ended("complete", promotion=promotion, model=model["model"])
        if gate is not None and not gate.passed:
            return self._ended("blocked", promotion=promotion)
        kind, text = failure or ("", "")
        if kind == GateRefused.__name__:
            return self._ended("blocked", promotion={**promotion, "reason": text})
        if failed := self._failed_check():
            text = f"stopped by the check {failed.check_name}: {failed.description or 'failed'}"
            return Ending(outcome="failed", error=_error("check_failed", text))
        if not kind or kind in PASSING:
            return Ending(outcome="stopped", error=_error("interrupted", text or "its process was lost"))
        return Ending(outcome="failed", error=_in_words(kind, text))

    def _ended(self, outcome: Any, *, promotion: Mapping[str, Any], model: str | None = None) -> Ending:
        tokens = _facts(self._check(COMPLETE)).get("trained_tokens")
        return Ending(outcome=outcome, promotion=promotion, model=model, trained_tokens=tokens)

    def _facts_of_model(self) -> dict[str, Any] | None:
        """Of the version that the run registered."""
        for event in self.events:
            if event.is_step_materialization and event.asset_key == REGISTERED_MODEL:
                facts = event.step_materialization_data.materialization.metadata
                return {name: facts[name].value for name in ("model", "stage")}
        return None

    def _check(self, name: str) -> dg.AssetCheckEvaluation | None:
        return next((check for check in self._checks() if check.check_name == name), None)

    def _checks(self) -> Iterator[dg.AssetCheckEvaluation]:
        for event in self.events:
            if event.event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
                yield event.asset_check_evaluation_data

    def _failed_check(self) -> dg.AssetCheckEvaluation | None:
        return next((check for check in self._checks() if check.blocking and not check.passed), None)

    def _failure(self) -> tuple[str, str] | None:
        """(class, text) of the first cause of the first step that failed; one that says more than an interruption goes before."""
        causes = [_cause(event.step_failure_data.error) for event in self.events if event.is_step_failure]
        return next((c for c in causes if c and c[0] not in PASSING), causes[0] if causes else None)


def _cause(error: SerializableErrorInfo | None) -> tuple[str, str] | None:
    while error and error.cause:
        error = error.cause
    if error is None:
        return None
    name, text = error.cls_name or "error", error.message.strip()
    return name, text.partition(": ")[2] if text.split(":")[0].endswith(name) else text


def _verdict(check: dg.AssetCheckEvaluation | None) -> dict[str, Any]:
    facts = _facts(check)
    if check is None:
        return {"verdict": None, "reason": "the gate was not reached", "gates": [], "report": None}
    table = check.metadata.get("gates")
    gates = [dict(record.data) for record in table.records] if isinstance(table, dg.TableMetadataValue) else []
    return {
        "verdict": facts.get("verdict"),
        "reason": check.description or "",
        "gates": gates,
        "report": facts.get("digest"),
    }


def _facts(check: dg.AssetCheckEvaluation | None) -> dict[str, Any]:
    return {name: value.value for name, value in check.metadata.items()} if check else {}


def _in_words(kind: str, text: str) -> dict[str, Any]:
    """An error of the house speaks for itself; anything else is a bug, whose text is for us."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, FtError):
        return _error(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower(), text)
    first = text.partition("\n")[0]
    return _error("internal_error", f"an error of the platform, not of the job: {kind}: {first}")


def _error(code: str, message: str) -> dict[str, Any]:
    """For a tenant, who has no use for a path of the server: of each only the last name stays."""
    return {"code": code, "message": SERVER_PATH.sub(r"\1", message), "param": None}
