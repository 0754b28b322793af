"""`ft-pipeline sweep`: what a dry run says, and a real sweep that is stopped, goes on, has a failed trial and is found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from ft_pipeline_tests import road


def write_sweep(home: Path, **changes) -> Path:
    said = {"recipe": "router", "method": "grid", "parameters": {"finetune.learning_rate": [0.02, 0.01]}, **changes}
    path = home / "rates.yaml"
    path.write_text(yaml.safe_dump(said))
    return path


@pytest.fixture
def written(home) -> Path:
    """A home with a recipe, rows, and a folder in place of the base model."""
    base = home.home / "bases" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    road.write_rows(home.home / "rows.jsonl", road.clean_rows(3))
    road.write_recipe(home.home)
    return home.home


def test_a_dry_run_lists_the_trials_and_writes_nothing(written, typed):
    path = write_sweep(written, method="random", trials=3, parameters={"finetune.lora.rank": [2, 4]})
    answer = typed("sweep", str(path), "--dry-run", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert [row["checkpoints"] for row in told["trials"]].count("compute") == told["to_train"] <= 2
    assert any(row["checkpoints"].startswith("same as trial") for row in told["trials"])
    assert "same as trial" in typed("sweep", str(path), "--dry-run").out
    assert not (written / "store").exists() and not (written / "sweeps").exists()


def test_a_recipe_file_beside_the_sweep_is_found(written, typed):
    (written / "own.yaml").write_text(yaml.safe_dump(road.document(name="own")))
    path = write_sweep(written, recipe="own.yaml")
    assert json.loads(typed("sweep", str(path), "--dry-run", "--json").out)["recipe"] == "acme/own"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"recipe": "ruoter"}, "did you mean router?"),
        ({"parameters": {"finetune.lora.rnk": [4]}}, "unknown parameter finetune.lora.rnk: did you mean rank?"),
        ({"parameters": {"finetune.lora.rank": [4, 0]}}, "rank 0"),
        ({"parameters": {"dataset.uri": ["home://rows.jsonl", "home://rowz.jsonl"]}}, "no file or folder at home://rowz.jsonl"),
        ({"metod": "grid"}, "unknown key metod: did you mean method?"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_is_refused_before_anything_runs(written, typed, changes, expected):
    answer = typed("sweep", str(write_sweep(written, **changes)))
    assert answer.code == 2 and expected in answer.err and "Traceback" not in answer.err
    assert not (written / "store").exists() and not (written / "sweeps").exists()


def test_a_sweep_by_a_loss_that_is_never_measured_is_refused(written, typed):
    road.write_recipe(written, curate__splits={"validation": 0.0, "holdout": 0.2})
    answer = typed("sweep", str(write_sweep(written)))
    assert answer.code == 2 and "has no validation split" in answer.err


def started(home: Path, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [road.CLI, "sweep", str(path)], env=road.environment(home), cwd=home.parent,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_a_step(home: Path, command: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not any(m.stat().st_size for m in (home / "work" / "runs").glob("*/metrics.jsonl")):
        assert time.monotonic() < until and command.poll() is None, "training never came so far"
        time.sleep(0.02)


def told(home: Path) -> dict:
    (folder,) = (home / "sweeps").iterdir()
    return json.loads((folder / "sweep.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_stops_goes_on_keeps_what_failed_and_is_found_again(finished_run):
    """0.02 is what the finished run trained, 0.01 is stopped by Ctrl-C and goes on, 1e30 fails for good."""
    home = finished_run
    for path in (home / "work" / "runs").glob("*/metrics.jsonl"):
        path.unlink()
    path = write_sweep(home, parameters={"finetune.learning_rate": [1e30, 0.02, 0.01]}, stop="gate", objective="holdout")  # fmt: skip

    command = started(home, path)
    wait_for_a_step(home, command)
    os.killpg(command.pid, signal.SIGINT)
    _, said = command.communicate(timeout=120)
    assert command.returncode == 75 and "Traceback" not in said, said
    assert [row["state"] for row in sorted(told(home)["trials"], key=lambda r: r["number"])] == ["stopped", "waiting", "waiting"]  # fmt: skip

    ended = road.call(home, "sweep", str(path))
    assert ended.returncode == 0, ended.stderr
    assert "resumed after step" in ended.stdout and "best of several draws" in ended.stdout
    rows = {row["parameters"]["finetune.learning_rate"]: row for row in told(home)["trials"]}
    assert [rows[rate]["state"] for rate in (0.01, 0.02, 1e30)] == ["trained", "reused", "failed"]
    assert "failed for good" in rows[1e30]["reason"] and rows[1e30]["digest"] is None
    assert rows[0.02]["digest"] and rows[0.02]["holdout"] is not None and rows[0.02]["verdict"] == "PASS"
    assert rows[0.01]["shards"] == rows[0.02]["shards"], "the data half is shared"
    assert told(home)["trials"][2]["state"] == "failed", "it ranks last"
    assert told(home)["winner"] in (rows[0.01]["key"], rows[0.02]["key"])
    _assert_files(home)

    again = road.call(home, "sweep", str(path), "--json")
    assert again.returncode == 0, again.stderr
    states = [(row["number"], row["state"]) for row in json.loads(again.stdout)["trials"]]
    assert sorted(states) == [(1, "reused"), (2, "reused"), (3, "failed")]
    assert len(road.artifact_folders(home, "registered_model")) == 1, "a sweep registers nothing"


def _assert_files(home: Path) -> None:
    (folder,) = (home / "sweeps").iterdir()
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "trials").glob("router-s-*.yaml"))) == 3
    plan = road.call(home, "plan", str(folder / "winner.yaml"), "--json")
    assert plan.returncode == 0, plan.stderr
    body = json.loads(plan.stdout)
    assert body["recipe"] == "acme/router"
    assert {step["asset"]: step["state"] for step in body["steps"]}["adapter"] == "reuse"
