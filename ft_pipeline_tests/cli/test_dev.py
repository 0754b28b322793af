"""`dev`: the UI loads the code location without an error, and Ctrl-C leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline_tests import road

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUERY = """{
  workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename } } } }
  assetNodes { assetKey { path } groupName description kinds }
}"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def api_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(home: Path, port: int, api_port: int) -> subprocess.Popen[str]:
    home.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [road.CLI, "dev", "--port", str(port), "--api-port", str(api_port)], env=road.environment(home), cwd=home, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def asked(port: int, query: str) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def members(group: int) -> list[str]:
    """Command lines of the processes of a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            session = (process / "stat").read_text().rpartition(")")[2].split()[3]
            if session == str(group):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line]


def test_the_ui_loads_every_asset_and_ctrl_c_ends_everything(home, port, api_port):
    command = started(home.home, port, api_port)
    try:
        until, loaded = time.monotonic() + 200, None
        while loaded is None:
            assert time.monotonic() < until and command.poll() is None, "the UI never answered"
            try:
                loaded = asked(port, QUERY)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        (location,) = loaded["workspaceOrError"]["locationEntries"]
        assert location["name"] == "ft_pipeline"
        assert location["locationOrLoadError"]["__typename"] == "RepositoryLocation"
        assert len(loaded["assetNodes"]) == 13
        with urllib.request.urlopen(f"http://127.0.0.1:{api_port}/health", timeout=60) as answer:
            assert json.load(answer)["status"] == "ok"
        assert all(node["description"] and node["kinds"] and node["groupName"] for node in loaded["assetNodes"])
    finally:
        os.killpg(command.pid, signal.SIGINT)
        command.communicate(timeout=90)
    assert command.returncode == 130
    until = time.monotonic() + 20
    while members(command.pid):
        assert time.monotonic() < until, members(command.pid)
        time.sleep(0.2)


@pytest.mark.parametrize("option", ["--port", "--mlflow-port", "--api-port"])
def test_a_taken_port_is_refused_before_anything_starts(home, typed, monkeypatch, option):
    monkeypatch.delenv("FT_MLFLOW")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        answer = typed("dev", "--port", "1", option, number)
    assert answer.code == 2
    assert f"something answers on 127.0.0.1:{number} already" in answer.err and f"`{option} N`" in answer.err
    assert not home.home.exists()
