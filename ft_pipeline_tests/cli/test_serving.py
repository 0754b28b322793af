"""`chat`: what was registered answers, in one line or in a conversation; the server that it starts ends with it."""

from __future__ import annotations

import socket
import subprocess

import pytest

from ft_pipeline_tests import road

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_chat_answers_as_the_adapter_was_taught(finished_run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    question = " ".join(road.words(12, seed=100_001)) + "?"
    answer = subprocess.run(
        [road.CLI, "chat", road.KEY], input=f"{question}\n{question}\n\n", env=road.environment(finished_run, FT_SERVE_PORT=port),
        cwd=finished_run.parent, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("yes") == 2 and "Traceback" not in answer.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0, "the server outlived the conversation"
