"""`python -m ft_pipeline.workers.kubernetes.launcher --nodes=... module job.json`: what a training pod runs.

Brings the run's files from the store, starts the processes, forwards a stop, sends new checkpoints and messages while they work, and
ends with an exit code that a podFailurePolicy can act on: 0 done, 42 failed for good, 75 interrupted (checkpointed, or the peers went
away), 143 stopped, 5 the store fails, anything else a crash. One node: the module itself, which starts its processes (finetune/ranks.py).
Several: torch's elastic agent with a fixed number of nodes. Plain torchrun would exit 1 after SIGTERM whatever its workers said.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ft_pipeline import settings
from ft_pipeline.errors import FtError, StorageError
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.workers.job import Job, read_job
from ft_pipeline.workers.kubernetes.carried import Carrier, Outbox
from ft_pipeline.workers.kubernetes.member import leads
from ft_pipeline.workers.outcome import COMPLETE, FAILED_FOR_GOOD, PREEMPTED, STOPPED, STORAGE

LOOK_SECONDS, TELL_SECONDS, OTHERS_SECONDS = 0.25, 1.0, 60.0
"""How often a new checkpoint is looked for, how often messages are sent, and the other files of a job without checkpoints."""
PUBLISH_SECONDS = 600.0
CRASHED = 1
MEMBER = "ft_pipeline.workers.kubernetes.member"
RENDEZVOUS = {"join_timeout": "120", "last_call_timeout": "5", "read_timeout": "60"}
"""A node that does not come within two minutes ends the others with 75: they come back together."""


class Stopped(BaseException):
    """SIGTERM while nothing was running yet that could save."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What the arguments say."""

    nodes: int
    processes: int
    name: str
    host: str
    address: str
    shutdown_seconds: int
    job: Job
    path: Path
    """Of the job.json that the processes read."""
    generation: str

    @property
    def index(self) -> int:
        """Completion index of this pod."""
        return settings.load().team_member


def main(argv: Sequence[str]) -> int:
    """The exit code of the pod."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        pod = _pod(argv)
        with_store = _Courier.of(pod)
        code = _run(pod, with_store)
        return with_store.close(code)
    except Stopped:
        return STOPPED
    except StorageError as error:
        _tell(f"storage: {error}")
        return STORAGE
    except FtError as error:
        _tell(str(error))
        return FAILED_FOR_GOOD


def exit_code_of(codes: Sequence[int]) -> int:
    """One code for the processes of a node; a negative one is the signal that killed a process."""
    plain = [code if code >= 0 else 128 - code for code in codes]
    for final in (FAILED_FOR_GOOD, STORAGE):
        if final in plain:
            return final
    if plain and all(code in (PREEMPTED, STOPPED) for code in plain):
        return PREEMPTED
    return CRASHED


def _pod(argv: Sequence[str]) -> Pod:
    parser = argparse.ArgumentParser()
    for name in ("nodes", "processes", "shutdown-seconds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("name", "host", "address", "folder", "generation"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("module")
    parser.add_argument("job", type=Path)
    said = parser.parse_args(argv)
    folder = Path(said.folder)
    folder.mkdir(parents=True, exist_ok=True)
    job = replace(read_job(said.job), folder=folder, module=said.module)
    return Pod(
        nodes=said.nodes, processes=said.processes, name=said.name, host=said.host, address=said.address,
        shutdown_seconds=said.shutdown_seconds, job=job, path=job.write(), generation=said.generation,
    )  # fmt: skip


def _run(pod: Pod, courier: _Courier) -> int:
    if pod.nodes > 1:
        courier.start()
        return _with_peers(pod)
    # alone: nobody else writes the list of files, so they can be fetched at once
    courier.carrier.fetch()
    courier.start()
    return _alone(pod)


def _alone(pod: Pod) -> int:
    """The module as a child that saves when it is stopped; killed when it takes longer than the pod has."""
    here = settings.load()
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", pod.job.module, str(pod.path), str(os.getpid())],
        stdin=subprocess.DEVNULL, env=settings.child_environment(here),
    )  # fmt: skip
    try:
        code = child.wait()
        return code if code >= 0 else 128 - code
    except Stopped:
        child.send_signal(signal.SIGTERM)
        try:
            code = child.wait(pod.shutdown_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return STOPPED
        return code if code in (COMPLETE, FAILED_FOR_GOOD, STORAGE, PREEMPTED) else STOPPED


def _with_peers(pod: Pod) -> int:
    """The processes of this node among those of the others."""
    from torch.distributed import DistNetworkError, DistStoreError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    try:
        elastic_launch(config=_elastic(pod), entrypoint=sys.executable)(
            "-u", "-m", MEMBER, str(pod.path), pod.job.module
        )
        return COMPLETE if leads(pod.job) else once_published(pod.job)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        _tell(f"processes ended with {codes}")
        return exit_code_of(codes)
    except (RendezvousError, DistNetworkError, DistStoreError) as error:
        _tell(f"the other nodes went away: {type(error).__name__}: {str(error)[:200]}")
        return PREEMPTED


def once_published(job: Job, *, seconds: float = PUBLISH_SECONDS) -> int:
    """Of a node that has done its part: 0 once the artifact is there, 75 when it does not come.

    An index that has succeeded is never started again. Were the leader lost while it publishes, its next pod would wait for ever.
    """
    store, until = open_store(settings.load()), time.monotonic() + seconds
    while store.manifest(job.spec.kind, job.spec.fingerprint) is None:
        if time.monotonic() > until:
            _tell("the leader has not published: all nodes start again from the newest checkpoint")
            return PREEMPTED
        time.sleep(min(2.0, seconds))
    return COMPLETE


def _elastic(pod: Pod) -> Any:
    """A fixed number of nodes: another would change the batch. No restart in place: it would train into the same NaN four times."""
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=pod.nodes, max_nodes=pod.nodes, nproc_per_node=pod.processes, run_id=pod.name, role="trainer",
        rdzv_backend="c10d", rdzv_endpoint=pod.host, rdzv_configs={**RENDEZVOUS, "is_host": str(int(pod.index == 0))},
        max_restarts=0, local_addr=pod.address, shutdown_timeout=pod.shutdown_seconds,
    )  # fmt: skip


@dataclass
class _Courier:
    """Sends messages, and the leader's checkpoints, while the processes work."""

    carrier: Carrier
    outbox: Outbox
    job: Job
    alone: bool
    over: threading.Event
    thread: threading.Thread | None = None
    _newest: str = ""
    _sent_at: float = 0.0
    _told_at: float = 0.0

    @classmethod
    def of(cls, pod: Pod) -> _Courier:
        """The courier of a pod."""
        store, job = open_store(settings.load()), pod.job
        fingerprint = job.spec.fingerprint
        outbox = Outbox(store, fingerprint, pod.generation, f"{pod.index}", job.folder / "messages.jsonl")
        carrier = Carrier(store, fingerprint, job.folder)
        return cls(carrier, outbox, job, pod.nodes == 1, threading.Event())

    @property
    def sends_files(self) -> bool:
        """Where the process of rank 0 is: torch's agents deal the ranks, by address."""
        return self.alone or leads(self.job)

    def start(self) -> None:
        """From now on in the background."""
        self._newest, self._sent_at = self.carrier.newest(), time.monotonic()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def close(self, code: int) -> int:
        """Sends the rest; the exit code of the pod, 5 when work could not be sent. What is published needs no sending."""
        self.over.set()
        if self.thread is not None:
            self.thread.join()
        try:
            if code != COMPLETE and self.sends_files:
                self.carrier.send()
            self.outbox.send()
        except StorageError as error:
            _tell(f"the last checkpoint could not be sent: {error}")
            return STORAGE if code != FAILED_FOR_GOOD else code
        return code

    def _work(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            try:
                self._look()
            except (FtError, OSError) as error:
                _tell(f"not sent yet: {error}")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._told_at > TELL_SECONDS:
            self.outbox.send()
            self._told_at = now
        if not self.sends_files:
            return
        newest = self.carrier.newest()
        late = self.job.spec.kind != "checkpoints" and now - self._sent_at > OTHERS_SECONDS
        if newest != self._newest or late:
            self.carrier.send()
            self._newest, self._sent_at = newest, now


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # once is enough: the rest is sending and leaving
    raise Stopped


def _tell(text: str) -> None:
    """A line of the pod's log; the last lines are the pod's termination message."""
    with suppress(OSError):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
