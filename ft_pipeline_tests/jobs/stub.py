"""Jobs in the records, and a launcher whose runs do what a test says. It keeps Dagster's promise: one run for each run_key."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.jobs.dispatch import Ending, RunState
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import Limits, NewJob, TrainingJob

_numbers = itertools.count(1)
COMPLETE = Ending(outcome="complete", model="acme/router@1", promotion={"blocked": False, "stage": "dev"})


def new_job(tenant: str, *, line: str | None = None, **changes: Any) -> NewJob:
    number = next(_numbers)
    values = {
        "id": f"ftjob-{number:024x}", "tenant": tenant, "line": line or f"{tenant}/line-{number}", "tier": 10,
        "recipe": "{}", "recipe_sha256": "0" * 64, "request": {}, "placement": {}, "estimate": {},
        "base_model": "tiny", "training_file": "file-1", "created_by": "tester",
    }  # fmt: skip
    return NewJob(**{**values, **changes})


def submit(records: Records, tenant: str = "acme", **changes: Any) -> TrainingJob:
    """A queued job; its tenant is made when it is new."""
    if tenant not in {known.id for known in records.tenants()}:
        records.add_tenant(tenant, actor="tester", limits=Limits(concurrent_jobs=2, queued_jobs=None))
    return records.submit(new_job(tenant, **changes), admit=lambda _counts: None)[0]


class Killed(BaseException):
    """kill -9 at this point: nothing behind it happens."""


class StubLauncher:
    """Runs by run_key."""

    def __init__(self) -> None:
        self.runs: dict[str, RunState] = {}
        self.log: list[str] = []
        """One line for each run that was really started."""
        self.asked = 0
        self.stopped: list[str] = []
        self.endings: dict[str, Ending] = {}
        self.killed_before = self.killed_after = False

    def launch(self, job: TrainingJob) -> None:
        self.asked += 1
        if self.killed_before:
            raise Killed
        if job.run_key not in self.runs:
            self.log.append(job.run_key)
            self.runs[job.run_key] = RunState(run_id=f"run-{len(self.log)}", phase="going")
        if self.killed_after:
            raise Killed

    def states(self, jobs: Sequence[TrainingJob]) -> Mapping[str, RunState]:
        return {job.run_key: self.runs[job.run_key] for job in jobs if job.run_key in self.runs}

    def stop(self, state: RunState) -> None:
        self.stopped.append(state.run_id)
        key = next(key for key, run in self.runs.items() if run.run_id == state.run_id)
        self.runs[key] = RunState(run_id=state.run_id, phase="stopping")

    def ending(self, state: RunState) -> Ending:
        return self.endings[state.run_id]

    def end(self, job: TrainingJob, ending: Ending = COMPLETE) -> None:
        run_id = self.runs[job.run_key].run_id
        self.endings[run_id] = ending
        self.runs[job.run_key] = RunState(run_id=run_id, phase="ended")
