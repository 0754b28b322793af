"""Trainers that can be hit: real children, forked or started, with signals planted in what they do, and what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ft_pipeline_tests.left_behind import store_of

PLANTS = {
    "model load": 1, "checks": 1, "resuming": 1, "forward": 30, "backward": 30, "optimizer step": 15, "evaluation": 4,
    "checkpoint write": 3, "retention": 3, "publishing": 1,
}  # fmt: skip
"""What a trainer may be doing -> how often it does so at most before it is hit."""
IMPORT_SECONDS = 4.0
ENVIRONMENT = {
    "FT_MLFLOW": "off", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONWARNINGS": "ignore",
}  # fmt: skip
POLL_SECONDS = 0.01


def restart_on_a_copy(root: Path, words: Sequence[str]) -> NoReturn:
    """This program over a copy of the code in `root`: code is part of what a run is made of, and somebody may be editing it."""
    here, copy = Path(__file__).parents[1], root / "code"
    for package in ("ft_pipeline", "ft_pipeline_tests"):
        shutil.copytree(here / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    program = [sys.executable, "-m", "ft_pipeline_tests.faults", *words, "--root", str(root)]
    os.chdir(copy)
    os.execve(program[0], program, {**os.environ, "PYTHONPATH": str(copy)})


def preload() -> None:
    """The imports of a trainer, once for all forks. No tensor is computed here: a fork must not inherit threads."""
    os.environ.update(ENVIRONMENT)
    from ft_pipeline.workers.startup import UNUSED_BY_A_MODEL, hide

    hide(UNUSED_BY_A_MODEL)
    import peft  # noqa: F401

    from ft_pipeline.finetune import boundary, effect, loop, main, resume_certificate  # noqa: F401
    from ft_pipeline.finetune.methods import causal  # noqa: F401


def recipe() -> Any:
    """Some fifty steps of a few milliseconds, with dropout, an evaluation at each end of an epoch."""
    from ft_pipeline.recipe import Lora
    from ft_pipeline_tests import tiny

    return tiny.recipe(epochs=16, lora=Lora(rank=4, alpha=8, dropout=0.1))


def build(root: Path) -> None:
    """Base model and shards in `root/store`."""
    from ft_pipeline_tests import tiny

    store = store_of(root)
    base = tiny.publish_base(store, tiny.base_folder(root / "base"))
    tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(40), validation=6), base)


@dataclass
class Child:
    """A process that this one started: pid, or a Popen of a fresh interpreter."""

    pid: int
    home: Path
    size: int
    popen: subprocess.Popen[bytes] | None = None
    code: int | None = None

    def poll(self) -> int | None:
        """Exit code as subprocess gives it, None while it runs."""
        if self.code is None and self.popen is not None:
            self.code = self.popen.poll()
        elif self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    @property
    def returncode(self) -> int | None:
        """As of a Popen."""
        return self.poll()

    def wait(self, seconds: float | None = None) -> int:
        """The exit code, when all processes of the run are gone. A process that hangs is killed and gives -999."""
        until = time.monotonic() + (seconds or 1e9)
        while self.poll() is None or any(_alive(pid) for pid in self._ranks()):
            if time.monotonic() > until:
                for pid in (self.pid, *self._ranks()):
                    _send(pid, signal.SIGKILL)
                return -999
            time.sleep(POLL_SECONDS)
        assert self.code is not None
        return self.code

    def send_signal(self, number: int) -> None:
        """As of a Popen."""
        _send(self.pid, number)

    def kill(self) -> None:
        """As of a Popen."""
        self.send_signal(signal.SIGKILL)

    def hit(self, rank: int, number: int) -> bool:
        """Sends a signal to one process of the run; False when it is not there."""
        if self.poll() is not None:
            return False
        if self.size == 1 or rank < 0:
            return _send(self.pid, number)
        pids = self._ranks()
        return rank < len(pids) and _send(pids[rank], number)

    def _ranks(self) -> list[int]:
        if self.size == 1:
            return []
        if self.popen is not None:  # interpreters of their own: found by their command line
            return [pid for pid in _working_on(self.home) if pid != self.pid]
        return [int(p.read_text() or 0) for p in sorted(self.home.glob("rank-*.pid"))]


def launch(home: Path, size: int, shot: Any) -> Child:
    """Starts the trainer of a home: a fork of this process, or a fresh interpreter for a shot at its imports."""
    for leftover in (*home.glob("rank-*.pid"), home / "fired"):
        leftover.unlink(missing_ok=True)
    path = _job(home, size)
    if shot is not None and shot.instant == "import":
        return _fresh(home, size, path)
    return Child(in_fork(lambda: _trainer(home, path, size, shot), home / "log.txt", wait=False), home, size)


def in_fork(work: Callable[[], int | None], log: Path, *, wait: bool = True) -> int:
    """Runs work in a fork of this process; its pid, or raises when it was waited for and failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            code = work() or 0
        except BaseException:  # noqa: BLE001 - told in the log and by the exit code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if wait and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit(log.read_text()[-2000:])
    return pid


def _trainer(home: Path, path: Path, size: int, shot: Any) -> int:
    """What `python -m ft_pipeline.finetune.main job.json` does once it has imported everything."""
    from ft_pipeline.finetune import main
    from ft_pipeline.workers import preemption
    from ft_pipeline.workers.child import run_child

    os.environ["FT_HOME"] = str(home)
    if size > 1:
        return _forking_parent(home, path, shot).run()
    preemption.listen()
    _plant(home, shot, 0)
    return run_child(main.body, ["main", str(path)])


def _forking_parent(home: Path, path: Path, shot: Any) -> Any:
    """The parent of several processes, which forks them instead of starting interpreters."""
    from ft_pipeline.finetune import main
    from ft_pipeline.finetune.ranks import Parent
    from ft_pipeline.finetune.status import with_status
    from ft_pipeline.settings import rank_environment
    from ft_pipeline.workers import preemption
    from ft_pipeline.workers.child import run_child
    from ft_pipeline.workers.job import read_job

    class ForkingParent(Parent):
        def _started(self, rank: int, rendezvous: str) -> Any:
            parent = os.getpid()

            def work() -> int:
                preemption.listen()
                os.environ.update(rank_environment(rank, self.job.placement.processes, rendezvous))
                _plant(home, shot, rank)
                return run_child(with_status(main.body, rank), ["main", str(path), str(parent)])

            pid = in_fork(work, home / "log.txt", wait=False)
            (home / f"rank-{rank}.pid").write_text(str(pid))
            return Child(pid, home, 1)

    return ForkingParent(read_job(path), path)


def _fresh(home: Path, size: int, path: Path) -> Child:
    words = [sys.executable, "-m", "ft_pipeline.finetune.main", str(path)]
    environment = {**os.environ, "FT_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])}
    with (home / "log.txt").open("ab") as log:
        popen = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
    return Child(popen.pid, home, size, popen)


def _plant(home: Path, shot: Any, rank: int) -> None:
    """Sends the shot's signal to this process when it does for the n-th time what the shot is aimed at."""
    if shot is None or shot.instant not in PLANTS or shot.rank != rank:
        return
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from ft_pipeline.finetune import boundary, checkpoint, main, model
    from ft_pipeline.finetune.methods import causal

    left = shot.after

    def reached(instant: str) -> None:
        nonlocal left
        left -= instant == shot.instant
        if instant == shot.instant and left == 0:
            (home / "fired").touch()
            os.kill(os.getpid(), shot.number)

    def before(owner: Any, name: str, instant: str) -> None:
        real = getattr(owner, name)
        setattr(owner, name, lambda *args, **options: (reached(instant), real(*args, **options))[1])

    def loss(method: Any, trainee: Any, batch: Any) -> Any:
        reached("forward" if torch.is_grad_enabled() else "evaluation")
        made = plain(method, trainee, batch)
        if torch.is_grad_enabled():
            made.total.register_hook(lambda _: reached("backward"))
        return made

    plain, causal.Causal.loss = causal.Causal.loss, loss  # type: ignore[method-assign]
    before(model, "load_trainee", "model load")
    before(boundary, "check_boundaries", "checks")
    before(checkpoint.Checkpoints, "load", "resuming")
    before(checkpoint.Checkpoints, "_retain", "retention")
    before(checkpoint, "_write_optimizer", "checkpoint write")
    before(main, "write_certificate", "publishing")
    register_optimizer_step_pre_hook(lambda *_: reached("optimizer step"))


def _job(home: Path, size: int) -> Path:
    """job.json of the run."""
    from ft_pipeline.finetune.launch import train_job
    from ft_pipeline.workers.job import Placement
    from ft_pipeline_tests.faults import EVERY_STEPS

    store = store_of(home)
    base, shards = (store.fetch(next(iter(store.all(kind))).ref) for kind in ("base_model", "packed_shards"))
    sharding = {} if size == 1 else {"processes": size, "sharding": "ddp"}
    place = Placement(threads=1, checkpoint_steps=EVERY_STEPS, grace_seconds=60, **sharding)  # type: ignore[arg-type]
    return train_job(recipe(), shards=shards, base=base, work=store.work, placement=place).write()


def _send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _working_on(home: Path) -> list[int]:
    """Processes of a trainer of this home."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            line = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if b"ft_pipeline.finetune.main" in line and f"{home}/".encode() in line:
            found.append(int(process.name))
    return found


def _alive(pid: int) -> bool:
    """False for a process that ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
