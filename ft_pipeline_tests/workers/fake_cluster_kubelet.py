"""The kubelet of the fake cluster: a container is a process of this machine. Mounts are folders, so paths below /cache and /spec are
put in their place in arguments and variables, and the names of the headless Service become loopback addresses.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft_pipeline_tests.workers.fake_cluster import FakeCluster, Object, now

MARK = "FAKE_POD"
MESSAGE_BYTES = 2048


class Container:
    """A container that runs or has run. `kill` reaches everything in it."""

    def __init__(self, pod: Object, folder: Path) -> None:
        self.uid, self.node, self.folder = pod["metadata"]["uid"], pod["spec"]["nodeName"], folder
        self.log, self.started, self.code = folder / "log", now(), None
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping = False
        self.kill_at = float("inf")

    def kill(self) -> None:
        if self.process is not None:
            for pid in pids(self.uid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


class Kubelet:
    """All nodes' kubelets in one."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.containers: dict[str, Container] = {}
        self.ports: dict[str, int] = {}

    def step(self) -> None:
        for pod in self.cluster.all("pods"):
            node = pod["spec"].get("nodeName")
            if node and self.cluster.nodes[node].alive:
                self._sync(pod)

    def _sync(self, pod: Object) -> None:
        held, phase = self.containers.get(pod["metadata"]["uid"]), pod["status"].get("phase")
        if phase == "Pending" and held is None:
            if pod["metadata"].get("deletionTimestamp"):
                return self._ended(pod, 143)
            return self._start(pod)
        if held is None or phase != "Running":
            return None
        if held.process is not None and held.code is None:
            held.code = held.process.poll()
        if held.code is not None:
            return self._ended(pod, held.code if held.code >= 0 else 128 - held.code)
        if pod["metadata"].get("deletionTimestamp"):
            self._stop(held, pod["metadata"]["deletionGracePeriodSeconds"])
        return None

    def _start(self, pod: Object) -> None:
        volumes = [v["configMap"]["name"] for v in pod["spec"].get("volumes", ()) if "configMap" in v]
        if any(("configmaps", name) not in self.cluster.objects for name in volumes):
            return  # ContainerCreating
        held = Container(pod, self.cluster.folder / "pods" / pod["metadata"]["name"])
        held.folder.mkdir(parents=True)
        held.log.touch()
        self.containers[held.uid] = held
        if self.cluster.runner is not None:
            threading.Thread(target=self._run_stub, args=(held, pod), daemon=True).start()
        else:
            held.process = self._process(held, pod)
        pod["status"] |= {"phase": "Running", "startTime": held.started}
        pod["status"]["containerStatuses"] = [
            {"name": "trainer", "ready": True, "state": {"running": {"startedAt": held.started}}}
        ]
        self.cluster.touch("pods", pod)

    def _run_stub(self, held: Container, pod: Object) -> None:
        assert self.cluster.runner is not None
        held.code = self.cluster.runner(self.cluster, pod)

    def _process(self, held: Container, pod: Object) -> subprocess.Popen[bytes]:
        container = pod["spec"]["containers"][0]
        for volume in pod["spec"].get("volumes", ()):
            place = held.folder / volume["name"]
            place.mkdir()
            if "configMap" in volume:
                for name, text in self.cluster.get("configmaps", volume["configMap"]["name"])["data"].items():
                    (place / name).write_text(text)
        variables = {e["name"]: e["value"] for e in container["env"] if "value" in e}
        variables["POD_NAME"] = pod["metadata"]["name"]
        where = {m["mountPath"]: str(held.folder / m["name"]) for m in container.get("volumeMounts", ())}
        words = [*container["command"], *container["args"]]
        words = [self._placed(_expanded(word, variables), where, pod) for word in words]
        words[0] = sys.executable if words[0] == "python" else words[0]
        own = {name: self._placed(value, where, pod) for name, value in variables.items()}
        with held.log.open("ab") as output:
            return subprocess.Popen(
                words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **own, **self.cluster.environment, MARK: held.uid},
            )  # fmt: skip

    def _placed(self, value: str, where: dict[str, str], pod: Object) -> str:
        for mount in ("/cache", "/spec"):
            if mount in where:
                value = re.sub(rf"(^|=){mount}(/|$)", rf"\g<1>{where[mount]}\g<2>", value)
        name = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        port = self.ports.setdefault(name, _free_port())
        # an address of its own for each pod: torch's agents deal the ranks in the order of addresses
        value = value.replace(f"{name}-0.{name}:29400", f"127.0.1.1:{port}")
        return re.sub(rf"{name}-(\d+)\.{name}", lambda m: f"127.0.1.{int(m[1]) + 1}", value)

    def _stop(self, held: Container, grace: float) -> None:
        if not held.stopping:
            held.stopping, held.kill_at = True, time.monotonic() + grace
            if held.process is not None:
                held.process.send_signal(signal.SIGTERM)
            else:
                held.code = 143
        elif time.monotonic() > held.kill_at:
            held.kill()

    def _ended(self, pod: Object, code: int) -> None:
        held = self.containers.get(pod["metadata"]["uid"])
        if held is not None:
            held.kill()  # whatever the first process left behind dies with the container
        end: dict[str, Any] = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "finishedAt": now()}
        end["startedAt"] = held.started if held else now()
        if code and held:
            end["message"] = held.log.read_bytes()[-MESSAGE_BYTES:].decode(errors="replace")
        pod["status"] |= {"phase": "Succeeded" if code == 0 else "Failed"}
        pod["status"]["containerStatuses"] = [{"name": "trainer", "ready": False, "state": {"terminated": end}}]
        self.cluster.touch("pods", pod)

    def power_off(self, node: str) -> None:
        for held in self.containers.values():
            if held.node == node:
                held.kill()

    def kill_all(self) -> None:
        for held in self.containers.values():
            held.kill()

    def processes(self) -> list[int]:
        return [pid for uid, held in list(self.containers.items()) if held.process for pid in pids(uid)]

    def log_of(self, pod: Object, *, follow: bool) -> Iterator[bytes]:
        """Lines with their times, as `timestamps=true` gives them."""
        held = self.containers[pod["metadata"]["uid"]]
        with held.log.open("rb") as file:
            while True:
                over = pod["status"].get("phase") not in ("Pending", "Running")
                for line in file:
                    yield datetime.now(UTC).isoformat().encode() + b" " + line
                if over or not follow:
                    return
                time.sleep(0.05)


def pids(uid: str) -> list[int]:
    """Of every living process of a container."""
    wanted, found = f"{MARK}={uid}".encode(), []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            ours = folder.name.isdigit() and wanted in (folder / "environ").read_bytes()
            if ours and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(folder.name))
    return found


def _expanded(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\(([A-Z_]+)\)", lambda m: variables.get(m[1], m[0]), word)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
