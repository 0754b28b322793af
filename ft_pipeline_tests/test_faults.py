"""The fault injection, short: what `python -m ft_pipeline_tests.faults --kills 100` does, for a few kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("ranks", "seed"), [("1", "0"), ("1,2", "2")])
def test_killed_trainers_end_in_the_bytes_of_one_that_nobody_killed(tmp_path, ranks, seed):
    """A process of its own: a fork of pytest would inherit its threads."""
    words = [sys.executable, "-m", "ft_pipeline_tests.faults", "--kills", "4", "--seed", seed, "--ranks", ranks]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert "4 kills" in ended.stdout and ", 0 problems;" in ended.stdout


def test_a_rank_that_waits_for_another_one_ends_with_its_parent(tmp_path):
    """It waits in C++, where no signal is heard: without the care of workers/child.py for half an hour, holding the run's lock."""
    program = (
        "import os, sys, signal, time; from pathlib import Path; from ft_pipeline_tests import faulty\n"
        "from ft_pipeline.settings import rank_environment\n"
        "faulty.preload(); home = Path(sys.argv[1]); faulty.in_fork(lambda: faulty.build(home), home / 'build.txt')\n"
        "path = faulty._job(home, 2); meeting = f'file://{home}/meeting'\n"
        "def alone():\n"
        "    from ft_pipeline.finetune import main\n"
        "    from ft_pipeline.workers import preemption\n"
        "    from ft_pipeline.workers.child import run_child\n"
        "    preemption.listen(); os.environ.update(rank_environment(1, 2, meeting), FT_HOME=str(home))\n"
        "    return run_child(main.body, ['main', str(path), str(os.getppid())])\n"
        "def parent():\n"
        "    Path(home / 'rank-1.pid').write_text(str(faulty.in_fork(alone, home / 'log.txt', wait=False))); time.sleep(60)\n"
        "pid = faulty.in_fork(parent, home / 'log.txt', wait=False); time.sleep(5); os.kill(pid, signal.SIGKILL)\n"
        "rank = int((home / 'rank-1.pid').read_text()); print('waits', faulty._alive(rank), (home / 'meeting').exists())\n"
        "time.sleep(3); print('then', faulty._alive(rank)); faulty._send(rank, signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", program, str(tmp_path / "home")]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "waits True True\nthen False" in ended.stdout, ended.stdout + ended.stderr[-2000:]
