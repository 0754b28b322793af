"""`dev`: the Dagster UI and daemon, and the MLflow UI, on localhost until Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console


@click.command()
@click.option("--port", default=3000, show_default=True, help="Port of the Dagster UI.")
@click.option("--mlflow-port", default=5000, show_default=True, help="Port of the MLflow UI.")
def dev(port: int, mlflow_port: int) -> None:
    """Start the Dagster UI + daemon and the MLflow UI on localhost; Ctrl-C stops both."""
    from ft_pipeline.cli import launch

    where = settings.load()
    home = launch.prepare_home(where)
    environment = {
        **settings.child_environment(where),
        "DAGSTER_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "PYTHONWARNINGS": "ignore",
    }
    here = Path(sys.executable).parent
    commands = {
        "Dagster": [
            str(here / "dagster"),
            "dev",
            "-w",
            str(launch.workspace_yaml()),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        "MLflow": [
            str(here / "mlflow"),
            "server",
            "--backend-store-uri",
            where.mlflow_uri,
            "--host",
            "127.0.0.1",
            "--port",
            str(mlflow_port),
            "--workers",
            "1",
        ],
    }
    started = {name: subprocess.Popen(command, env=environment, cwd=where.home) for name, command in commands.items()}
    console.print(f"Dagster http://127.0.0.1:{port}   MLflow http://127.0.0.1:{mlflow_port}   (Ctrl-C stops both)")
    try:
        wait_for_first(started)
    finally:
        for child in started.values():
            child.send_signal(signal.SIGINT)
        for child in started.values():
            child.wait(30)


def wait_for_first(started: dict[str, subprocess.Popen[bytes]]) -> None:
    """Returns when one of the processes has ended."""
    while all(child.poll() is None for child in started.values()):
        time.sleep(0.5)
    ended = [name for name, child in started.items() if child.poll() is not None]
    console.print(f"{', '.join(ended)} ended; stopping the rest")
