"""`dev`: the Dagster UI and daemon, the MLflow UI and the platform API, on localhost until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console
from ft_pipeline.errors import FtError, UserError
from ft_pipeline.settings import Settings

HOST = "127.0.0.1"
STOP_SECONDS = 30


@click.command()
@click.option("--port", default=3000, show_default=True, help="Port of the Dagster UI.")
@click.option("--mlflow-port", default=5000, show_default=True, help="Port of the MLflow UI.")
@click.option(
    "--api-port", type=int, help="Port of the platform API; 0 leaves it out. Default: FT_API_PORT, else 8400."
)
def dev(port: int, mlflow_port: int, api_port: int | None) -> None:
    """Start the Dagster UI + daemon, the MLflow UI and the platform API on localhost; Ctrl-C stops them all."""
    from ft_pipeline.cli import launch

    where = settings.load()
    api_port = where.api_port if api_port is None else api_port
    refuse_taken(port, "--port")
    if _mlflow(where, mlflow_port):
        refuse_taken(mlflow_port, "--mlflow-port")
    if api_port:
        refuse_taken(api_port, "--api-port")
    home = launch.prepare_home(where)
    environment = {
        **settings.child_environment(where),
        "DAGSTER_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "PYTHONWARNINGS": "ignore",
    }
    commands = {
        "Dagster": ["dagster", "dev", "-w", str(launch.workspace_yaml()), "-h", HOST, "-p", str(port)],
        **_mlflow(where, mlflow_port),
        **_api(api_port),
    }
    started = {
        # a group of its own: Ctrl-C reaches it once, from `stop`, and what it started can be ended with it
        name: subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *words], env=environment, cwd=where.home, process_group=0
        )
        for name, (program, *words) in commands.items()
    }
    api = f"   API http://{HOST}:{api_port}/v1" if api_port else ""
    console.print(
        f"Dagster http://{HOST}:{port}   MLflow {_mlflow_place(where, mlflow_port)}{api}   (Ctrl-C stops)",
        soft_wrap=True,
    )
    try:
        wait_for_first(started)
    finally:
        stop(list(started.values()))


def refuse_taken(port: int, option: str) -> None:
    """Raises UserError when something listens there already: Dagster would silently take another port."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            pass
    except OSError:
        return
    raise UserError(f"something answers on {HOST}:{port} already", cure=f"stop it, or take another port: `{option} N`")


def _mlflow(where: Settings, port: int) -> dict[str, list[str]]:
    """The MLflow server over our own database; none when it is switched off or runs elsewhere."""
    if where.mlflow_uri == settings.NO_MLFLOW or where.mlflow_uri.startswith(("http://", "https://")):
        return {}
    # one worker is enough for one person
    words = ["--backend-store-uri", where.mlflow_uri, "--host", HOST, "--port", str(port), "--workers", "1"]
    return {"MLflow": ["mlflow", "server", *words]}


def _api(port: int) -> dict[str, list[str]]:
    """The platform API; it starts an inference server with the first chat, and both end with us."""
    words = ["serve-api", "--port", str(port), "--with-server", "--parent", str(os.getpid())]
    return {"API": ["ft-pipeline", *words]} if port else {}


def _mlflow_place(where: Settings, port: int) -> str:
    return f"http://{HOST}:{port}" if _mlflow(where, port) else where.mlflow_uri


def wait_for_first(started: dict[str, subprocess.Popen[bytes]]) -> None:
    """Waits until one of the processes has ended by itself, which none should: raises FtError."""
    while not (ended := [name for name, child in started.items() if child.poll() is not None]):
        time.sleep(0.5)
    raise FtError(
        f"{ended[0]} ended with exit code {started[ended[0]].returncode}; the rest was stopped",
        cure="its last lines are above; then run the same command again",
    )


def stop(children: list[subprocess.Popen[bytes]]) -> None:
    """Ends the processes: as Ctrl-C does, and by force what is left of them and of what they started."""
    for child in children:
        child.send_signal(signal.SIGINT)
    until = time.monotonic() + STOP_SECONDS
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(until - time.monotonic(), 0))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
