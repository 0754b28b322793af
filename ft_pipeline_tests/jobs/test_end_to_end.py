"""Jobs under the real daemon: a row becomes a run and a registered model; cancelled, nothing trains on; paused, it loses nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline import recipe, resources
from ft_pipeline.cli import launch
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import JobStatus, TrainingJob
from ft_pipeline_tests import bump_end_to_end, road
from ft_pipeline_tests.jobs import one_process
from ft_pipeline_tests.jobs.stub import submit

EPOCHS = 20
"""340 steps: long enough to be stopped in the middle."""


class Platform:
    """A home with the daemon over it."""

    def __init__(self, daemon: bump_end_to_end.Daemon) -> None:
        self.daemon = daemon
        self.records = Records(daemon.house.catalog.engine)

    def submit(self, name: str, **changes: Any) -> TrainingJob:
        document = road.document(name=name, finetune__epochs=EPOCHS, **changes)
        found = recipe.parse(document, origin="test")
        return submit(
            self.records, "acme", line=found.key, recipe=json.dumps(document),
            recipe_sha256=recipe.recipe_sha256(found), placement={"checkpoint_steps": 20, "threads": 1},
        )  # fmt: skip

    def until(self, job: TrainingJob, *statuses: JobStatus) -> TrainingJob:
        def there() -> TrainingJob | None:
            found = self.records.job(job.id)
            assert found.status in statuses or not found.has_ended, found
            return found if found.status in statuses else None

        return self.daemon.wait(f"{job.id} to be {statuses}", there)

    def trainer(self, job: TrainingJob) -> int:
        """Process id of the training of a job's line, once it has made steps."""
        self.daemon.wait(f"{job.id} to train", lambda: (self.records.job(job.id).step or 0) >= 3)
        return next(iter(trainers(job.line)))

    def stopped_in_the_middle(self, job: TrainingJob, wish: str) -> int:
        """Asks for the wish while the trainer holds its breath, so that it is in the middle whenever the daemon looks. Its process id."""
        process = self.trainer(job)
        os.kill(process, signal.SIGSTOP)
        try:
            self.records.wish(job.id, wish)
            run_id = self.daemon.wait("the run to be known", lambda: self.records.job(job.id).run_id)
            self.daemon.wait(
                "the run to be told", lambda: self.daemon.instance.get_run_by_id(run_id).status.value in ("CANCELING", "CANCELED")
            )  # fmt: skip
        finally:
            os.kill(process, signal.SIGCONT)
        return process


def trainers(line: str) -> set[int]:
    """Processes of this machine that train a model line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (words := _words(entry)) and "ft_pipeline.finetune.main" in words:
            job = Path(words[words.index("ft_pipeline.finetune.main") + 1])
            found |= {int(entry.name)} if json.loads(job.read_text())["facts"].get("model_line") == line else set()
    return found


def _words(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:  # it has ended meanwhile
        return []


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    home = tmp_path / "home"
    road.build(home)
    workspace = tmp_path / "workspace.yaml"
    module = {"module_name": one_process.__name__, "location_name": "ft_pipeline"}
    workspace.write_text(json.dumps({"load_from": [{"python_module": module}]}))
    with bump_end_to_end.running(home, monkeypatch.setenv, workspace) as daemon:
        yield Platform(daemon)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_submitted_paused_resumed_and_another_cancelled(platform: Platform, tmp_path: Path, monkeypatch) -> None:
    """One run for each launch; the model that was paused in the middle is, byte for byte, the one that was not."""
    records = platform.records
    paused = platform.submit("router")
    platform.stopped_in_the_middle(paused, "pause")
    at = platform.until(paused, "paused")
    assert 3 <= (at.step or 0) < (at.planned_steps or 0)
    assert trainers("acme/router") == set()

    cancelled = platform.submit("other", finetune__seed=7)
    process = platform.stopped_in_the_middle(cancelled, "cancel")
    platform.until(cancelled, "cancelled")
    assert trainers("acme/other") == set()
    assert not Path(f"/proc/{process}").exists()

    records.move(paused.id, "queued", only_from=["paused"], message="resumed")
    ended = platform.until(paused, "succeeded")
    assert (ended.fine_tuned_model, ended.attempt, ended.step) == ("acme/router@1", 2, at.planned_steps)
    assert ended.promotion["blocked"] is False
    assert (ended.promotion["verdict"], ended.promotion["stage"]) == ("PASS", "production")
    assert ended.trained_tokens > 0

    runs = [run.tags["dagster/run_key"] for run in platform.daemon.runs()]
    assert sorted(runs) == sorted([f"{paused.id}#1", f"{paused.id}#2", f"{cancelled.id}#1"])
    states = [i.state for i in records.intervals(of_jobs=[paused.id])]
    assert [s for s in states if s != "checkpointing"][:4] == ["queued", "provisioning", "running", "paused"]
    assert states[-1] == "evaluating"
    steps = records.steps_of([paused.id])[paused.id]
    assert steps[1][0] < steps[2][0] and steps[2][1] == at.planned_steps, "it goes on, not from the start"

    assert digest(platform.daemon.house) == uninterrupted(tmp_path / "apart", monkeypatch)


def digest(house: resources.House) -> str:
    return house.catalog.head("acme/router", "adapter").digest


def uninterrupted(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The adapter of the same recipe, trained at one go in a home of its own."""
    road.build(home)
    for name, value in {**road.environment(home), "FT_THREADS": "1", "FT_MLFLOW": "off"}.items():
        monkeypatch.setenv(name, value)
    house = resources.open_house()
    found = recipe.parse(road.document(finetune__epochs=EPOCHS), origin="test")
    launch.launch(house, found, until=("adapter",))
    return digest(house)
