"""The same end to end on a real cluster, the one of KUBECONFIG: `make test-cluster`. Core API only.

A tiny recipe trains in two pods on CPUs under gloo, undisturbed; then again with another store and one pod evicted in the middle. Both
end in the same digest and leave nothing. Pods need an image (`--cluster-image`), or an interpreter on nodes that run containers as
processes of this machine's file system (`--host-python`); and a store that they reach (`--cluster-store`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.files import Bucket
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.kubernetes.client import ApiError, Cluster, connect
from ft_pipeline.workers.kubernetes.manifest import job_name
from ft_pipeline.workers.kubernetes.profile import BARE, Profile
from ft_pipeline.workers.kubernetes.worker import KubernetesWorker
from ft_pipeline.workers.messages import Message
from ft_pipeline_tests import tiny
from ft_pipeline_tests.workers.scenes import ROOT, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Place:
    """A namespace of the cluster and how pods are run there."""

    cluster: Cluster
    profile: Profile


@pytest.fixture
def place(request, monkeypatch) -> Iterator[Place]:
    option = request.config.getoption
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster: KUBECONFIG is not set")
    if not option("--cluster-image") and not option("--host-python"):
        pytest.skip("no way to run a pod: give --cluster-image or --host-python")
    name = option("--cluster-namespace") or f"ft-test-{secrets.token_hex(3)}"
    cluster = connect(name)
    if not option("--cluster-namespace"):
        cluster._json(
            "POST", "/api/v1/namespaces", body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )
    profile = replace(
        BARE, namespace=name, service_account="default", priority_class=None, image=option("--cluster-image") or "none",
        python=option("--host-python") or "python", cache_gib=2, tmp_gib=1, grace_seconds=40, shutdown_seconds=30,
    )  # fmt: skip
    yield Place(cluster, profile)
    if not option("--cluster-namespace"):
        cluster._json("DELETE", f"/api/v1/namespaces/{name}", body={"propagationPolicy": "Foreground"})


@pytest.fixture
def root(request) -> str:
    """A store that pods reach."""
    given = request.config.getoption("--cluster-store")
    return f"{given}/{secrets.token_hex(4)}" if given else request.getfixturevalue("s3_bucket")


def job_in(store: Store, home: Settings, tmp_path) -> Job:
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(96)), base)
    recipe = tiny.recipe(epochs=60, windows_per_step=4, windows_per_micro=2)
    return tiny.train_job_here(store, recipe, {"shards": shards, "base": base}, threads=1, worker="kubernetes", nodes=2)


def run(place: Place, job: Job, store: Store, where: Settings, *, disturb: bool) -> tuple[Artifact, list[str]]:
    """The artifact and what was told. Disturbed: the pod of index 1 is evicted once three steps are told."""
    said, evicted = [], []

    def listener(message: Message) -> None:
        said.append(message.text)
        if disturb and not evicted and message.kind == "progress" and message.task == "train" and message.done >= 3:
            evicted.append(_evict(place.cluster, job_name(job)))

    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "FT_S3_ENDPOINT")
    reach = {name: os.environ[name] for name in names if os.environ.get(name)}
    own = {**reach, "FT_STORE": store.bucket.root, "OMP_NUM_THREADS": "1"}
    if place.profile.image == "none":
        own["PYTHONPATH"] = str(ROOT)
    worker = KubernetesWorker(
        settings=where, store=store, cluster=place.cluster, profile=replace(place.profile, environment=own)
    )
    made = worker.run(job, listener)
    assert bool(evicted) == disturb, "the run ended before it could be disturbed"
    until(lambda: place.cluster.job(job_name(job)) is None and not place.cluster.pods(job_name(job)), 120)
    return made, said


def _evict(cluster: Cluster, name: str) -> str:
    pod = next(p["metadata"]["name"] for p in cluster.pods(name) if f"{name}-1-" in p["metadata"]["name"])
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": cluster.namespace}}
    cluster._json("POST", f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/eviction", body=body)
    return pod


def test_a_pod_that_is_evicted_in_the_middle_changes_no_byte(home, place, root, tmp_path):
    made = []
    for disturb in (False, True):
        store = Store(Bucket(f"{root}/{disturb}", os.environ.get("FT_S3_ENDPOINT")), tmp_path / str(disturb))
        where = replace(home, store_uri=store.bucket.root, mlflow_uri="off")
        job = job_in(store, home, tmp_path)
        artifact, said = run(place, job, store, where, disturb=disturb)
        made.append(artifact)
        if disturb:
            assert any("EvictionByEvictionAPI" in text for text in said)
            assert artifact.manifest.execution["attempts"] == 2 and artifact.manifest.execution["steps_replayed"] == 0
    assert made[0].ref.digest == made[1].ref.digest


def test_the_server_takes_the_manifests_of_a_gpu_placement(place, tmp_path, home):
    """A dry run: nothing is made."""
    from ft_pipeline.workers.kubernetes.manifest import manifests
    from ft_pipeline.workers.placed import placement_of
    from ft_pipeline_tests.workers.scenes import counting

    wanted = placement_of({"kind": "kubernetes", "gpu": "h100-80gb", "nodes": 2, "spot": True})
    for manifest in manifests(counting(home), wanted, replace(BARE, namespace=place.cluster.namespace)):
        group = "/api/v1" if manifest["apiVersion"] == "v1" else "/apis/batch/v1"
        path = f"{group}/namespaces/{place.cluster.namespace}/{manifest['kind'].lower()}s"
        try:
            place.cluster._json("POST", path, query={"dryRun": "All", "fieldValidation": "Strict"}, body=manifest)
        except ApiError as error:
            pytest.fail(f"{manifest['kind']}: {error.message}")
