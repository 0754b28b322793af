"""What scenario tests share: a fake cluster with a worker in front of it, runs in the background, and the checks after each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.kubernetes.attaching import Pace
from ft_pipeline.workers.kubernetes.client import cluster_of
from ft_pipeline.workers.kubernetes.manifest import job_name
from ft_pipeline.workers.kubernetes.profile import BARE, Profile
from ft_pipeline.workers.kubernetes.worker import KubernetesWorker
from ft_pipeline.workers.messages import Message
from ft_pipeline_tests.workers.fake_cluster import NAMESPACE, FakeCluster, Node

ROOT = Path(__file__).parents[2]
PACE = Pace(tick=0.05, pods=0.3, first_retry=0.1, longest_retry=0.4, patience=20)


@dataclass
class Record:
    """Where a scenario tells what it made and left: pytest's record_property of the test that runs."""

    tell: Callable[[str, object], None] | None = None


record = Record()


@dataclass
class Background:
    """A run in a thread: what it said and how it ended."""

    said: list[Message] = field(default_factory=list)
    made: Artifact | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None
    interrupt: bool = False
    """Set it: the next message or tick interrupts the run, as Dagster and Ctrl-C do."""

    def __call__(self, message: Message) -> None:
        self.said.append(message)
        if self.interrupt:
            raise KeyboardInterrupt

    def join(self, seconds: float = 90) -> Background:
        assert self.thread is not None
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"the run does not end; it said {self.texts[-5:]}"
        return self

    @property
    def texts(self) -> list[str]:
        return [m.text for m in self.said if m.text]

    def told(self, part: str) -> bool:
        return any(part in text for text in self.texts)

    @property
    def step(self) -> float:
        return max((m.done for m in self.said if m.kind == "progress"), default=0)


@dataclass
class Scene:
    """A store, a cluster and a worker."""

    home: Settings
    store: Store
    cluster: FakeCluster
    profile: Profile

    def worker(self, **more: Any) -> KubernetesWorker:
        api = cluster_of(self.cluster.configuration(), NAMESPACE)
        made = {"settings": self.home, "store": self.store, "cluster": api, "profile": self.profile, "pace": PACE}
        return KubernetesWorker(**{**made, **more})

    def start(self, job: Job, **more: Any) -> Background:
        """A run in the background, whose ticks a test can interrupt."""
        run, worker = Background(), self.worker(**more)

        def work() -> None:
            try:
                run.made = worker.run(job, run)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                run.error = error

        run.thread = threading.Thread(target=work, daemon=True)
        run.thread.start()
        return run

    def finish(self, job: Job, **more: Any) -> Background:
        return self.start(job, **more).join()

    def attempts(self, job: Job) -> list[dict[str, Any]]:
        path = job.folder / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def check_clean(self) -> None:
        """Nothing is left: no Job, Service, ConfigMap, pod, process, nor anything below `.runs` of a run that is done."""
        self.cluster.wait(lambda: not self.cluster.leftovers(), 20)
        if record.tell:
            again = [
                json.loads(line)["lost_steps"]
                for path in self.home.work.glob("runs/*/attempts.jsonl")
                for line in path.read_text().splitlines()
            ]
            facts = {
                **self.cluster.made,
                "steps_again": sum(n or 0 for n in again),
                "left": len(self.cluster.leftovers()),
            }
            for name in ("jobs", "pods", "steps_again", "left"):
                record.tell(name, facts.get(name, 0))

    def running(self, job: Job, index: int = 0) -> Any:
        """The running pod of an index, once it runs."""

        def found() -> Any:
            return next(
                (p for p in self.cluster.running(job_name(job)) if f"-{index}-" in p["metadata"]["name"][-9:]), None
            )

        return self.cluster.wait(found)


@contextmanager
def scene(home: Settings, store: Store, tmp_path: Path, *, nodes: list[Node] | None = None, **profile: Any):
    """A scene in a folder of its own; its processes are gone afterwards."""
    own = {"FT_STORE": store.bucket.root, "PYTHONPATH": str(ROOT), "FT_THREADS": "1", "OMP_NUM_THREADS": "1"}
    shaped = replace(BARE, environment=own, grace_seconds=10, shutdown_seconds=8, **profile)
    with FakeCluster(tmp_path / "cluster", nodes=nodes) as cluster:
        cluster.environment = {"FAKE_GANG": str(tmp_path / "gang")}
        yield Scene(home, store, cluster, shaped)


def counting(
    home: Settings,
    *,
    name: str = "",
    steps: int = 40,
    nodes: int = 1,
    place: dict[str, Any] | None = None,
    **section: Any,
) -> Job:
    """A job that counts to `steps`."""
    section = {"steps": steps, **section}
    spec = Spec(kind="checkpoints", config={"count": section, "name": name}, parents={}, code="counting")
    return Job(
        name=f"count to {steps}", module="ft_pipeline_tests.workers.counting", spec=spec, section=section, facts={},
        folder=home.work / "runs" / spec.fingerprint,
        placement=Placement(worker="kubernetes", nodes=nodes, threads=1, **(place or {})),
    )  # fmt: skip


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


SUMS = [n * (n + 1) // 2 for n in range(1, 1000)]
