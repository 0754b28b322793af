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
