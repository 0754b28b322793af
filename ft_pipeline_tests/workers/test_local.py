"""The local worker with real child processes: success needs an artifact, every exit code has its meaning, nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ft_pipeline.errors import Interrupted, StorageError, TrainingFailed, UserError
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.job import Job, Placement, read_job
from ft_pipeline.workers.local import LocalWorker, exclusive
from ft_pipeline.workers.messages import ignore

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def worker(home, store):
    return LocalWorker(home, store)


def toy(home, do: str, **section) -> Job:
    spec = Spec(kind="checkpoints", config={"do": do, **section}, parents={}, code="toy")
    return Job(
        name=f"toy {do}", module="ft_pipeline_tests.workers.toy", spec=spec, section={"do": do, **section},
        folder=home.work / "runs" / spec.fingerprint, placement=Placement(grace_seconds=10), facts={"tenant": "test"},
    )  # fmt: skip


def wait_for(path: Path, seconds: float = 60) -> str:
    until = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)
    return path.read_text()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int, seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


def test_a_job_publishes_and_tells_and_is_found_the_second_time(home, worker):
    said = []
    job = toy(home, "publish")
    made = worker.run(job, said.append)
    assert made.file("made.txt").read_text() == "made"
    assert [m.text for m in said if m.kind == "log"] == ["doing publish"]
    assert [(m.done, m.total) for m in said if m.kind == "progress"][-1] == (3, 3)
    again = []
    assert worker.run(job, again.append).ref == made.ref
    assert len(again) == 1 and again[0].facts["reused"]


def test_a_job_survives_its_trip_through_json(home):
    job = toy(home, "publish")
    assert read_job(job.write()) == job


@pytest.mark.parametrize(
    ("do", "says"),
    [
        ("fail", "failed for good: step 3: loss nan"),
        ("crash", "crashed with exit code 1"),
        ("kill itself", "crashed with exit code -9"),
        ("nothing", "exited 0 and published nothing"),
    ],
)
def test_what_is_not_success_is_an_error_with_the_reason(home, worker, do, says):
    with pytest.raises(TrainingFailed, match=says):
        worker.run(toy(home, do), ignore)


@pytest.mark.parametrize(
    ("do", "says"),
    [("fill the disk", "no space left while running toy"), ("lose the store", "no answer from S3")],
)
def test_a_disk_or_store_that_fails_is_told_as_such_and_can_be_resumed(home, worker, do, says):
    with pytest.raises(StorageError, match=f"stopped because of its storage: {says}") as stopped:
        worker.run(toy(home, do), ignore)
    assert stopped.value.exit_code == 5 and "run the same command again" in stopped.value.cure


def test_a_listener_that_stops_the_run_stops_the_child_after_it_has_saved(home, worker):
    def impatient(message):
        if message.kind == "progress":
            raise KeyboardInterrupt

    job = toy(home, "slowly", steps=600, seconds=0.05)
    with pytest.raises(KeyboardInterrupt):
        worker.run(job, impatient)
    assert (job.folder / "saved").is_file() and gone(int((job.folder / "pid").read_text()))


def test_a_child_that_gets_sigterm_is_resumable(home, worker):
    job = toy(home, "slowly", steps=600, seconds=0.05)

    def terminate():
        os.kill(int(wait_for(job.folder / "pid")), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(Interrupted, match="was stopped"):
        worker.run(job, ignore)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_orchestrator_leaves_no_child_and_its_work_is_saved(home, store, how):
    job = toy(home, "slowly", steps=600, seconds=0.05)
    program = (
        "import sys; from pathlib import Path; from ft_pipeline import settings; from ft_pipeline.store.artifacts import open_store\n"
        "from ft_pipeline.workers.job import read_job; from ft_pipeline.workers.local import LocalWorker\n"
        "w = settings.load(); LocalWorker(w, open_store(w)).run(read_job(Path(sys.argv[1])), lambda m: None)"
    )
    orchestrator = subprocess.Popen([sys.executable, "-c", program, str(job.write())])
    child = int(wait_for(job.folder / "pid"))
    orchestrator.send_signal(how)
    orchestrator.wait(30)
    assert gone(child) and wait_for(job.folder / "saved", 5)


def test_two_runs_at_once_make_one_artifact(home, worker):
    job = toy(home, "publish", steps=3, seconds=0.3)
    made = []
    threads = [threading.Thread(target=lambda: made.append(worker.run(job, ignore))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 2 and made[0].ref == made[1].ref
    assert made[0].manifest.execution == made[1].manifest.execution


def test_a_folder_that_another_process_holds_is_refused_with_the_cure(tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match="another process is running") as refused,
        exclusive(tmp_path, wait_seconds=0.2),
    ):
        pass
    assert "wait for it" in refused.value.cure
