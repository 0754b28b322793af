"""A fake Kubernetes: objects with resourceVersions and history, served over HTTP (fake_cluster_http), moved by a Job controller
(fake_cluster_jobs), a scheduler with nodes (fake_cluster_nodes) and a kubelet that runs containers as processes (fake_cluster_kubelet).

Nothing in it is faster than the real thing but its clock: back-off, taint and power-loss delays are divided by `speed`.
"""

from __future__ import annotations

import copy
import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Object = dict[str, Any]
NAMESPACE = "ft-train"


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.reason = code, message, reason


@dataclass
class Node:
    """A machine of the fake cluster."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    gpus: int = 8
    pods: int = 100
    taints: tuple[str, ...] = ()
    """Keys of NoSchedule taints."""
    alive: bool = True


@dataclass
class Faults:
    """What goes wrong on purpose."""

    create: list[tuple[int, str]] = field(default_factory=list)
    """Answers to the next POSTs of Jobs, in order."""
    down: bool = False
    """Every connection is closed without an answer."""
    watch: list[int] = field(default_factory=list)
    """Codes of ERROR events with which the next watches end."""
    drop: int = 0
    """Increase it: running watches break in the middle of a line."""


class FakeCluster:
    """`with FakeCluster(folder) as cluster:`; a kubernetes.client.Configuration for it comes from `configuration()`."""

    def __init__(self, folder: Path, *, nodes: list[Node] | None = None, speed: float = 40.0) -> None:
        self.folder, self.speed = folder, speed
        self.nodes = {n.name: n for n in (nodes or [Node(f"node-{i}") for i in range(4)])}
        self.faults, self.changed = Faults(), threading.Condition(threading.RLock())
        self.objects: dict[tuple[str, str], Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.requests: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.watches = 0
        self.most_watches = 0
        self.quota_pods: int | None = None
        """ResourceQuota of the namespace."""
        self.oldest = 0
        """Watches from before this resourceVersion are answered with 410."""
        self.runner: Callable[[FakeCluster, Object], int] | None = None
        """Instead of processes: a function in a thread that gives the exit code of a pod."""
        self.environment: dict[str, str] = {}
        """Of every container besides its own."""
        self._version = itertools.count(100)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> FakeCluster:
        from ft_pipeline_tests.workers.fake_cluster_http import serve
        from ft_pipeline_tests.workers.fake_cluster_jobs import JobController
        from ft_pipeline_tests.workers.fake_cluster_kubelet import Kubelet
        from ft_pipeline_tests.workers.fake_cluster_nodes import Scheduler

        self.server = serve(self)
        self.kubelet = Kubelet(self)
        for part in (JobController(self), Scheduler(self), self.kubelet):
            thread = threading.Thread(target=self._loop, args=(part.step,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        self.kubelet.kill_all()
        self.faults.down = True
        self.server.shutdown()
        self.server.server_close()

    def _loop(self, step: Callable[[], None]) -> None:
        while not self._over.is_set():
            with self.changed:
                step()
                self.changed.wait(0.02)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def configuration(self) -> Any:
        from kubernetes import client

        made = client.Configuration()
        made.host = self.url
        return made

    # ---- objects

    def all(self, plural: str) -> list[Object]:
        with self.changed:
            return [o for (kind, _), o in self.objects.items() if kind == plural]

    def get(self, plural: str, name: str) -> Object:
        found = self.objects.get((plural, name))
        if found is None:
            raise Refused(404, f'{plural} "{name}" not found', "NotFound")
        return found

    def create(self, plural: str, body: Object) -> Object:
        with self.changed:
            made = copy.deepcopy(body)
            about = made["metadata"]
            about.setdefault("name", f"{about.get('generateName', '')}{secrets.token_hex(3)}")
            if (plural, about["name"]) in self.objects:
                older = self.objects[plural, about["name"]]["metadata"]
                going = "object is being deleted: " if older.get("deletionTimestamp") else ""
                raise Refused(409, f'{going}{plural} "{about["name"]}" already exists', "AlreadyExists")
            about |= {"uid": secrets.token_hex(16), "creationTimestamp": now(), "namespace": NAMESPACE}
            made.setdefault("status", {})
            self.objects[plural, about["name"]] = made
            self.made[plural] += 1
            self.record(plural, "ADDED", made)
            return made

    def touch(self, plural: str, found: Object) -> None:
        """After a change of an object."""
        self.record(plural, "MODIFIED", found)

    def remove(self, plural: str, name: str) -> None:
        with self.changed:
            found = self.objects.pop((plural, name), None)
            if found is not None:
                self.record(plural, "DELETED", found)

    def record(self, plural: str, kind: str, found: Object) -> None:
        with self.changed:
            version = next(self._version)
            found["metadata"]["resourceVersion"] = str(version)
            self.history.append((version, plural, kind, copy.deepcopy(found)))
            self.changed.notify_all()

    @property
    def version(self) -> int:
        return self.history[-1][0] if self.history else 99

    def since(self, plural: str, version: int) -> list[tuple[int, str, Object]]:
        start = next((i for i, row in enumerate(self.history) if row[0] > version), len(self.history))
        return [(v, kind, o) for v, p, kind, o in self.history[start:] if p == plural]

    def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        """One Event a reason and object, its time brought up to date as a real one's is."""
        name = f"{about['metadata']['name']}.{reason.lower()}"
        if ("events", name) in self.objects:
            old = self.objects["events", name]
            old |= {"message": message, "lastTimestamp": now(), "count": old["count"] + 1}
            return self.touch("events", old)
        involved = {"kind": kind, "name": about["metadata"]["name"], "uid": about["metadata"]["uid"]}
        self.create("events", {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": involved, "reason": reason,
            "message": message, "type": "Warning", "lastTimestamp": now(), "count": 1,
        })  # fmt: skip
        return None

    # ---- pods

    def pods_of(self, job: str) -> list[Object]:
        with self.changed:
            return [p for p in self.all("pods") if p["metadata"]["labels"].get("batch.kubernetes.io/job-name") == job]

    def stop_pod(self, pod: Object, *, why: str | None = None) -> None:
        """Graceful: the kubelet ends it and then it goes. `why`: reason of its DisruptionTarget."""
        with self.changed:
            if why is not None:
                condition(pod, "DisruptionTarget", reason=why, message=f"{why} by the test")
            if not pod["metadata"].get("deletionTimestamp"):
                pod["metadata"]["deletionTimestamp"] = now()
                pod["metadata"]["deletionGracePeriodSeconds"] = pod["spec"].get("terminationGracePeriodSeconds", 30)
            self.touch("pods", pod)

    def evict(self, name: str) -> None:
        """As the Eviction API does."""
        self.stop_pod(self.get("pods", name), why="EvictionByEvictionAPI")

    def power_off(self, node: str) -> None:
        """Processes vanish without a word; the cluster notices late."""
        with self.changed:
            self.nodes[node].alive = False
            self.kubelet.power_off(node)

    # ---- for assertions

    def running(self, job: str) -> list[Object]:
        return [p for p in self.pods_of(job) if p["status"].get("phase") == "Running"]

    def leftovers(self) -> list[str]:
        """Jobs, Services, ConfigMaps, pods and processes that are still there."""
        found = [f"{kind}/{name}" for kind, name in self.objects if kind in ("jobs", "services", "configmaps", "pods")]
        return found + [f"process {pid}" for pid in self.kubelet.processes()]

    def wait(self, true: Callable[[], Any], seconds: float = 60) -> Any:
        """What `true()` gives once it is true."""
        until = time.monotonic() + seconds
        with self.changed:
            while not (found := true()):
                assert time.monotonic() < until, f"waited {seconds} s in vain; there are {sorted(self.objects)}"
                self.changed.wait(0.05)
            return found


def condition(found: Object, kind: str, *, status: str = "True", reason: str = "", message: str = "") -> None:
    """Sets a condition of an object's status."""
    conditions = found["status"].setdefault("conditions", [])
    conditions[:] = [c for c in conditions if c["type"] != kind]
    conditions.append(
        {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}
    )


def has(found: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in found["status"].get("conditions", ()))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def matches(found: Object, selectors: dict[str, str]) -> bool:
    """Whether an object is chosen by equality selectors of labels and fields."""
    labels = found["metadata"].get("labels") or {}
    for pair in _pairs(selectors.get("labelSelector")):
        if labels.get(pair[0]) != pair[1]:
            return False
    for path, value in _pairs(selectors.get("fieldSelector")):
        at: Any = found
        for key in path.split("."):
            at = at.get(key) or {}
        if at != value:
            return False
    return True


def _pairs(selector: str | None) -> Iterator[tuple[str, str]]:
    for part in (selector or "").split(","):
        if part:
            key, _, value = part.partition("=")
            yield key.rstrip("="), value.lstrip("=")
