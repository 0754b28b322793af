"""The pool: order, few items in flight, errors as they were raised, no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ft_pipeline.errors import DataError, FtError
from ft_pipeline.workers.pool import mapped
from ft_pipeline_tests.workers import pooled

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(processes):
    found = list(
        mapped(pooled.late_square, range(12), processes=processes, initializer=pooled.open_factor, initargs=(3,))
    )
    assert [square for square, _ in found] == [3 * n * n for n in range(12)]
    assert len({pid for _, pid in found}) == processes
    assert (os.getpid() in {pid for _, pid in found}) == (processes == 1)


def test_items_are_taken_from_a_stream_a_few_at_a_time():
    taken = []
    stream = mapped(abs, (taken.append(n) or n for n in range(100)), processes=2)
    assert next(stream) == 0 and len(taken) <= 5
    stream.close()
    assert not multiprocessing.active_children()


def test_an_error_comes_as_it_was_raised():
    with pytest.raises(DataError, match="seven") as raised:
        list(mapped(pooled.refuse_seven, range(20), processes=2))
    assert raised.value.cure == "another number"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_initializer_that_fails_says_why(processes):
    with pytest.raises(DataError, match="no such thing"):
        list(mapped(abs, range(3), processes=processes, initializer=pooled.refuse))


def test_a_killed_worker_is_told_and_not_waited_for():
    with pytest.raises(FtError, match="a worker process was killed"):
        list(mapped(pooled.die_at_two, range(6), processes=2))
    assert not multiprocessing.active_children()


def test_workers_die_with_a_killed_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, str(Path(pooled.__file__)), str(tmp_path)])
    try:
        _until(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    _until(lambda: not any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in workers))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _until(claim, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < ends
        time.sleep(0.05)
