"""The API as a process: it answers, finishes what runs on SIGTERM and exits with 0, and ends with its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from ft_pipeline_tests import road

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(home: Path, port: int, *words: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [road.CLI, "serve-api", "--port", str(port), *words], env=road.environment(home), cwd=home, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not answers(port):
        assert child.poll() is None and time.monotonic() < until, child.communicate()[1]
        time.sleep(0.1)
    return child


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def half_asked(port: int) -> socket.socket:
    """A request whose body has not come yet: it runs until it does."""
    asking = socket.create_connection(("127.0.0.1", port), timeout=20)
    asking.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{"
    )
    return asking


def test_sigterm_finishes_what_runs_and_exits_with_0(home, port):
    home.home.mkdir(parents=True)
    child = started(home.home, port)
    answer = httpx.get(f"http://127.0.0.1:{port}/v1/platform/me", trust_env=False)
    assert (answer.status_code, "server" in answer.headers) == (401, False)
    asking = half_asked(port)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    until = time.monotonic() + 20
    while answers(port):
        assert time.monotonic() < until, "it still accepts"
    threading.Timer(0.5, asking.sendall, [b"}"]).start()
    assert asking.recv(1000).startswith(b"HTTP/1.1 4")
    asking.close()
    out, err = child.communicate(timeout=40)
    assert child.returncode == 0, err
    assert f"platform API on http://127.0.0.1:{port}/v1" in out
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert {(line["path"], line["status"]) for line in lines} >= {("/health", 200), ("/v1/platform/me", 401)}
    assert "Traceback" not in err


def test_it_ends_with_its_parent(home, port):
    home.home.mkdir(parents=True)
    words = [road.CLI, "serve-api", "--port", str(port), "--parent"]
    code = f"import os, subprocess, time; subprocess.Popen({words!r} + [str(os.getpid())]); time.sleep(100)"
    parent = subprocess.Popen([sys.executable, "-c", code], env=road.environment(home.home), cwd=home.home)
    until = time.monotonic() + 60
    while not answers(port):
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while answers(port):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_port_that_is_taken_is_said(home):
    home.home.mkdir(parents=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        done = subprocess.run(
            [road.CLI, "serve-api", "--port", number], env=road.environment(home.home), capture_output=True, text=True
        )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{number}" in done.stderr and "FT_API_PORT" in done.stderr
