"""`python -m ft_pipeline_tests.bench_kubernetes [jobs] [at_once]`: how fast a run asks for its pods, what watching costs.

A fake API server in a process of its own, real clients over HTTP. Prints one JSON object: seconds from the call of `run` to the first
pod of its Job (p50, p99, max), watches and requests, and the memory of a process that does nothing but follow one Job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ft_pipeline import settings
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.kubernetes.client import cluster_of
from ft_pipeline.workers.kubernetes.manifest import job_name
from ft_pipeline.workers.kubernetes.profile import BARE
from ft_pipeline.workers.kubernetes.watching import Jobs
from ft_pipeline.workers.kubernetes.worker import KubernetesWorker
from ft_pipeline_tests.workers.fake_cluster import NAMESPACE, FakeCluster, Node, Object

POD_SECONDS = 2.0
H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
LABELS = {"labelSelector": "app.kubernetes.io/managed-by=ft-pipeline"}


def serve(folder: Path) -> None:
    """The fake cluster: prints its URL, and figures when its input ends. A pod works for two seconds and publishes."""
    store = open_store(settings.load())
    asked: dict[str, float] = {}

    def pod(cluster: FakeCluster, found: Object) -> int:
        time.sleep(POD_SECONDS)
        name = found["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        spec = json.loads(cluster.get("configmaps", name)["data"]["job.json"])["spec"]
        parents = {role: Ref(**ref) for role, ref in spec["parents"].items()}
        with store.publish(Spec(kind=spec["kind"], config=spec["config"], parents=parents, code=spec["code"])) as draft:
            (draft.folder / "made.txt").write_text("made")
        return 0

    class Timed(FakeCluster):
        def create(self, plural: str, body: Object) -> Object:
            if plural == "pods":
                asked.setdefault(body["metadata"]["labels"]["batch.kubernetes.io/job-name"], time.time())
            return super().create(plural, body)

    with Timed(folder, nodes=[Node(f"node-{n}", H100, gpus=1000, pods=1000) for n in range(4)]) as cluster:
        cluster.runner = pod
        print(cluster.url, flush=True)
        sys.stdin.readline()
        time.sleep(3)  # of a foreground deletion that has begun
        left = [name for kind, name in cluster.objects if kind in ("jobs", "services", "configmaps")]
        print(json.dumps({"asked": asked, "requests": cluster.requests, "most_watches": cluster.most_watches, "left": left}), flush=True)  # fmt: skip


def job(number: int, home: Path) -> Job:
    spec = Spec(kind="checkpoints", config={"bench": number}, parents={}, code="bench")
    return Job(
        name=f"bench {number}", module="none", spec=spec, section={}, folder=home / "work" / spec.fingerprint,
        placement=Placement(worker="kubernetes", device="cuda", gpu="h100-80gb"), facts={},
    )  # fmt: skip


def worker(url: str, *, jobs: Jobs | None = None) -> KubernetesWorker:
    from kubernetes import client

    made, here = client.Configuration(), settings.load()
    made.host = url
    return KubernetesWorker(
        settings=here, store=open_store(here), cluster=cluster_of(made, NAMESPACE), profile=BARE, jobs=jobs
    )


def follow(url: str, home: Path) -> None:
    """One run in a process of its own: the most memory that it had, in MiB."""
    worker(url).run(job(-1, home), lambda message: None)
    status = Path("/proc/self/status").read_text()
    print(json.dumps({"watching_mib": int(status.partition("VmHWM:")[2].split()[0]) / 1024}))


def race(count: int, at_once: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        os.environ["FT_HOME"] = str(home)
        here = [sys.executable, "-m", "ft_pipeline_tests.bench_kubernetes"]
        server = subprocess.Popen([*here, "serve", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdin and server.stdout
        url = server.stdout.readline().strip()
        memory = json.loads(subprocess.run([*here, "follow", url, str(home)], capture_output=True, text=True, check=True).stdout)  # fmt: skip
        begun, lock = {}, threading.Lock()
        start = time.time()
        shared = Jobs(worker(url).cluster, LABELS)
        with shared as jobs, ThreadPoolExecutor(at_once) as pool:
            ours = worker(url, jobs=jobs)

            def one(number: int) -> None:
                work = job(number, home)
                with lock:
                    begun[job_name(work)] = time.time()
                ours.run(work, lambda message: None)

            list(pool.map(one, range(count)))
        seconds = time.time() - start
        said = json.loads(server.communicate("\n")[0].splitlines()[-1])
    waits = sorted(said["asked"][name] - at for name, at in begun.items())
    return {
        "jobs": count, "at_once": at_once, "seconds": round(seconds, 1), "p50_s": round(waits[len(waits) // 2], 3),
        "p99_s": round(waits[int(len(waits) * 0.99) - 1], 3), "max_s": round(waits[-1], 3), "most_watches": said["most_watches"],
        "requests": said["requests"], "left": said["left"], **memory, "load": os.getloadavg()[0],
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["follow"]:
        follow(sys.argv[2], Path(sys.argv[3]))
    else:
        numbers = [int(word) for word in sys.argv[1:]] or [200, 50]
        print(json.dumps(race(*numbers), indent=1))
