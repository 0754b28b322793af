"""The parent of several processes: one exit code for all, a stop reaches each, a dead one ends the job, nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ft_pipeline.finetune.ranks import CRASHED, exit_code_of
from ft_pipeline.finetune.status import Status, read_status
from ft_pipeline.settings import child_environment, rank_here
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.messages import read_messages

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(home, monkeypatch):
    """Starts the job's `main` as a worker does; kills what is left at the end."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    running = []

    def start(*does: str, grace: float = 20) -> tuple[subprocess.Popen, Job]:
        section = {str(rank): do for rank, do in enumerate(does)}
        spec = Spec(kind="checkpoints", config=section, parents={}, code="toy")
        job = Job(
            name="toy", module="ft_pipeline_tests.finetune.toy_ranks", spec=spec, section=section, facts={},
            folder=home.work / "runs" / spec.fingerprint,
            placement=Placement(processes=len(does), grace_seconds=grace),
        )  # fmt: skip
        words = [sys.executable, "-m", job.module, str(job.write()), str(os.getpid())]
        running.append(subprocess.Popen(words, env=child_environment(home)))
        return running[-1], job

    yield start
    for process in running:
        process.kill()
        process.wait()


def pids(job: Job) -> list[int]:
    until, found = time.monotonic() + 60, []
    while len(found) < job.placement.processes:
        assert time.monotonic() < until
        time.sleep(0.05)
        found = [int(p.read_text()) for p in sorted(job.folder.glob("pid-*")) if p.read_text()]
    return found


def gone(pid: int, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def last_words(job: Job) -> str:
    return [m for m, _ in read_messages(job.folder / "messages.jsonl", 0) if m.kind == "error"][-1].text


def test_all_complete_is_complete(started):
    parent, job = started("complete", "complete")
    assert parent.wait(60) == 0
    assert read_status(job.folder, 0) == Status(rank=0, state="complete", step=3, planned=9)


@pytest.mark.parametrize(
    ("do", "code", "says"),
    [
        ("fail", 42, "process 1 of 2: loss nan"),
        ("disk", 5, "process 1 of 2: no space left"),
        ("crash", 1, "process 1 of 2: a bug"),
        ("kill", 1, "process 1 of 2: killed by signal 9"),
    ],
)
def test_one_that_dies_ends_the_others_which_would_hang_for_ever(started, do, code, says):
    parent, job = started("hang", do)
    assert parent.wait(60) == code
    assert last_words(job) == says
    assert all(gone(pid) for pid in pids(job))


def test_exit_0_without_a_status_file_is_a_crash(started):
    parent, _ = started("complete", "leave")
    assert parent.wait(60) == CRASHED


def test_sigterm_at_the_parent_reaches_every_process(started):
    parent, job = started("wait", "wait")
    pids(job)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == 75
    assert all((job.folder / f"saved-{rank}").is_file() for rank in range(2))
    assert read_status(job.folder, 1).state == "preempted"


def test_a_process_that_does_not_hear_the_stop_is_killed_before_the_grace_ends(started):
    parent, job = started("hang", "wait", grace=4)
    pids(job)
    before = time.monotonic()
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == CRASHED and time.monotonic() - before < 4
    assert all(gone(pid) for pid in pids(job))


def test_a_killed_parent_leaves_no_process_and_their_work_is_saved(started):
    parent, job = started("wait", "wait")
    ranks = pids(job)
    parent.kill()
    parent.wait()
    assert all(gone(pid) for pid in ranks)
    assert all((job.folder / f"saved-{rank}").is_file() for rank in range(2))


def status(rank: int, state) -> Status:
    return Status(rank=rank, state=state)


@pytest.mark.parametrize(
    ("codes", "states", "expected"),
    [
        ([0, 0], ["complete", "complete"], 0),
        ([75, 75], ["preempted", "preempted"], 75),
        ([75, 0], ["preempted", "complete"], 1),
        ([1, 42], ["crashed", "failed"], 42),
        ([-9, 75], [None, "preempted"], 1),
        ([0, 0], ["complete", None], 1),
    ],
)
def test_one_exit_code_for_all(codes, states, expected):
    said = [status(rank, state) if state else None for rank, state in enumerate(states)]
    assert exit_code_of(codes, said) == expected


def test_a_process_without_a_rank_belongs_to_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert rank_here() is None
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (rank_here().rank, rank_here().local_rank, rank_here().rendezvous) == (3, 1, "env://")
