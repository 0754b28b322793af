"""A base model moves under a running daemon: what is judged again, decided and held back, and what nobody does. Run as a script, it tells.

python -m ft_pipeline_tests.bump_end_to_end HOME: HOME holds a finished run (road.finished); it is changed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from ft_pipeline import resources, settings
from ft_pipeline.cli import launch
from ft_pipeline.gate.bump.recertify import read_recertification
from ft_pipeline.resources import House
from ft_pipeline_tests import road, tiny

PATIENCE_SECONDS = 420
FAST = {"FT_BASE_WATCH_SECONDS": "2", "FT_BASE_DEBOUNCE_SECONDS": "6", "FT_THREADS": "1"}


class Daemon:
    """The daemon over a home, and what its history says."""

    def __init__(self, home: Path, instance: dg.DagsterInstance, house: House) -> None:
        self.home, self.instance, self.house = home, instance, house

    def ticks(self, sensor: str) -> int:
        """How often a sensor has looked."""
        state = next((s for s in self.instance.all_instigator_state() if s.instigator_name == sensor), None)
        return len(self.instance.get_ticks(state.instigator_origin_id, state.selector_id)) if state else 0

    def after_ticks(self, sensor: str, count: int = 1) -> None:
        """Waits until a sensor has looked so many times more."""
        wanted = self.ticks(sensor) + count
        self.wait(f"{sensor} to look", lambda: self.ticks(sensor) >= wanted)

    def wait(self, what: str, done: Callable[[], Any]) -> Any:
        until = time.monotonic() + PATIENCE_SECONDS
        while not (found := done()):
            assert time.monotonic() < until, f"waited for {what}: {[(r.status, r.tags) for r in self.runs()]}"
            time.sleep(0.5)
        return found

    def runs(self) -> list[dg.DagsterRun]:
        return self.instance.get_runs()

    def materializations(self, asset: str) -> int:
        return len(self.instance.fetch_materializations(dg.AssetKey(asset), limit=100).records)

    def verdict(self) -> dict[str, Any] | None:
        """What became of the adapter, once a report is about another base."""
        report = self.house.catalog.head(road.KEY, "eval_report")
        return read_recertification(self.house.store.fetch(report)) if report.kind == "recertification" else None

    def quiet(self) -> bool:
        """True when every run has ended."""
        return all(run.is_finished for run in self.runs())


@contextmanager
def running(home: Path, monkey: Callable[[str, str], None], workspace: Path | None = None) -> Iterator[Daemon]:
    """The daemon over a finished home, stopped at the end with everything that it started."""
    for name, value in (road.environment(home) | FAST).items():
        monkey(name, value)
    where = settings.load()
    environment = {**road.environment(home, **FAST), "DAGSTER_HOME": str(launch.prepare_home(where))}
    command = [
        str(Path(sys.executable).with_name("dagster-daemon")),
        "run",
        "-w",
        str(workspace or launch.workspace_yaml()),
    ]
    with (home / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=home, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            with dg.DagsterInstance.from_config(str(where.dagster_home)) as instance:
                yield Daemon(home, instance, resources.open_house())
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def touched(folder: Path) -> None:
    """The base as good as before: its weights moved by a millionth, so that answers stay and the digest does not."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({n: t * (1 + 1e-6) for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def scenario(daemon: Daemon) -> dict[str, Any]:
    """There and back again, a base as good as before, a base of other weights. Returns what was seen at each step."""
    base, told = daemon.home / "bases" / "tiny", {}
    weights = base / "model.safetensors"
    first = weights.read_bytes()
    for sensor in ("base_model_watch", "recertification"):
        daemon.after_ticks(sensor, 2)
    daemon.wait("the first look to be over", lambda: time.sleep(8) or True)
    touched(base)
    daemon.after_ticks("base_model_watch")
    weights.write_bytes(first)
    daemon.after_ticks("base_model_watch", 6)
    told["there_and_back"] = {"runs": len(daemon.runs()), "base_model": daemon.materializations("base_model")}
    for name, change in (("as_good", lambda: touched(base)), ("other", lambda: tiny.base_folder(base, seed=1))):
        told[name] = _after(daemon, change)
    return told


def _after(daemon: Daemon, change: Callable[[], Any]) -> dict[str, Any]:
    before, runs = daemon.verdict(), len(daemon.runs())
    started = time.monotonic()
    change()
    daemon.wait("the watch to record it", lambda: marks(daemon)[road.KEY].recorded_only or daemon.verdict() != before)
    marked = time.monotonic() - started
    found = daemon.wait("a verdict", lambda: (v := daemon.verdict()) != before and v)
    judged = time.monotonic() - started
    daemon.after_ticks("recertification", 4)
    daemon.wait("every run to end", daemon.quiet)
    return {
        "verdict": found["verdict"], "reason": found["reason"], "marked_seconds": round(marked), "judged_seconds": round(judged),
        "runs": len(daemon.runs()) - runs, "trained": daemon.materializations("checkpoints"),
        "models": [(v.label, v.stage, v.base_digest) for v in daemon.house.catalog.models()],
    }  # fmt: skip


def marks(daemon: Daemon) -> dict[str, resources.Mark]:
    return resources.base_marks(daemon.instance, [road.KEY])


if __name__ == "__main__":
    with running(Path(sys.argv[1]).resolve(), os.environ.__setitem__) as started_daemon:
        for step, seen in scenario(started_daemon).items():
            print(step, seen)
