"""Ctrl-C and `kill -9` of the command in the middle of training: no child is left, and the same command ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import dagster as dg
import pytest

from ft_pipeline_tests import road

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def untrained(finished_run) -> Path:
    """The finished home as it was before training."""
    road.forget(finished_run, "checkpoints", "adapter", "eval_report", "registered_model", "deployment")
    return finished_run


def started(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [road.CLI, "run", "router", "--checkpoint-steps", "5"], env=road.environment(home), cwd=home.parent,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_step(home: Path, step: int) -> None:
    until = time.monotonic() + 300
    while not any(m.read_bytes().count(b"\n") >= step for m in (home / "work" / "runs").glob("*/metrics.jsonl")):
        assert time.monotonic() < until, "training never came so far"
        time.sleep(0.01)


def alive(home: Path) -> list[str]:
    """Command lines of the processes that work in this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(home) in line and "ft_pipeline" in line:
            found.append(line)
    return found


def unfinished(home: Path) -> list[dg.DagsterRun]:
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        return instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))


def test_ctrl_c_then_kill_9_then_the_same_command(finished_home, untrained):
    (whole,) = road.artifact_folders(finished_home, "adapter")
    for path in (untrained / "work" / "runs").glob("*/metrics.jsonl"):
        path.unlink()

    command = started(untrained)
    wait_for_step(untrained, 8)
    os.killpg(command.pid, signal.SIGINT)
    _, said = command.communicate(timeout=120)
    assert command.returncode == 75
    assert said.startswith("acme/router was stopped\n") and "run the same command again" in said
    assert "Traceback" not in said and alive(untrained) == []

    command = started(untrained)
    wait_for_step(untrained, 20)
    command.kill()
    command.communicate(timeout=120)
    until = time.monotonic() + 60
    while alive(untrained):
        assert time.monotonic() < until, "the trainer outlived its parent"
        time.sleep(0.1)
    assert len(unfinished(untrained)) == 1

    ended = road.call(untrained, "run", "router")
    assert ended.returncode == 0, ended.stderr
    assert "resumed after step" in ended.stdout
    (made,) = road.artifact_folders(untrained, "adapter")
    assert made.name == whole.name
    for path in whole.iterdir():
        if path.name != "manifest.json":
            assert (made / path.name).read_bytes() == path.read_bytes(), path.name
    assert unfinished(untrained) == [], "a dead run would hold a place in the queue"
