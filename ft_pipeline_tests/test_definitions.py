"""The map loads: clean by Dagster's own check, without torch, with the jobs, the sensor and the schedules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from ft_pipeline import definitions, settings
from ft_pipeline_tests import road

JOBS = {"fine_tune", "prepare_data", "train", "evaluate", "export_model"}
ROOMS = ("acquire", "curate", "encode", "finetune", "gate", "register", "serve")


@pytest.mark.slow
def test_dagster_finds_nothing_to_complain_about(home):
    dagster = str(Path(sys.executable).parent / "dagster")
    home.dagster_home.mkdir(parents=True)
    ended = subprocess.run(
        [dagster, "definitions", "validate", "-w", str(settings.PROJECT / "workspace.yaml")],
        env=road.environment(home.home, DAGSTER_HOME=str(home.dagster_home)), cwd=settings.PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "Validation successful" in said and "ERROR" not in said and "Warning" not in said


def test_jobs_sensor_and_schedules_are_there(home):
    made = definitions.build()
    assert {job.name for job in made.resolve_all_job_defs()} >= JOBS
    assert {s.name for s in made.sensors} == {
        "recipe_sync",
        "base_model_watch",
        "recertification",
        "base_change_retraining",
        "job_queue",
        "budget_guard",
        "job_costs",
    }
    assert {s.default_status for s in made.sensors} == {dg.DefaultSensorStatus.RUNNING}
    assert "retrain_demo__docs_router" in {s.name for s in made.schedules}


def test_jobs_hold_the_rooms_that_they_say(home):
    made = definitions.build()

    def assets(name: str) -> set[str]:
        job = made.resolve_job_def(name)
        return {key.to_user_string() for key in job.asset_layer.selected_asset_keys}

    whole = {spec.key.to_user_string() for spec in made.resolve_all_asset_specs()}
    assert assets("fine_tune") == whole - {"bump_status", "exported_model"}
    assert assets("prepare_data") == {"raw_dataset", "pinned_base", "curated_dataset", "packed_shards"}
    assert assets("train") == {"reference_logprobs", "checkpoints", "adapter"}
    assert assets("evaluate") == {"base_model", "eval_report", "registered_model"}


def test_every_asset_is_in_its_room_and_partitioned_by_recipe(home):
    specs = list(definitions.build().resolve_all_asset_specs())
    assert {spec.group_name for spec in specs} == set(ROOMS)
    partitions = {spec.key.to_user_string(): spec.partitions_def for spec in specs}
    assert partitions.pop("bump_status") is None, "one page over all recipes"
    assert {of.name for of in partitions.values()} == {"recipes"}


def test_loading_needs_no_heavy_library_and_no_database(home):
    heavy = ("torch", "transformers", "peft", "trl", "polars", "mlflow", "datasets", "matplotlib")
    code = f"import sys; from ft_pipeline import definitions; definitions.defs; print([m for m in {heavy} if m in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=road.environment(home.home), capture_output=True, text=True
    )
    assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr
    assert not home.home.exists()
