"""Every manifest of k8s/, each overlay built: schemas, our checks, and what must agree between files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from ft_pipeline.settings import PROJECT, Settings
from ft_pipeline.workers.kubernetes.checks import faults_of
from ft_pipeline.workers.kubernetes.health import NEEDS
from ft_pipeline.workers.kubernetes.profile import PROFILES
from ft_pipeline_tests.k8s.kustomize import built

K8S = PROJECT / "k8s"
FOLDERS = sorted(path.parent for path in K8S.rglob("kustomization.yaml"))
FILES = sorted(path for path in K8S.rglob("*.yaml"))
PATCHES = {p for folder in FOLDERS for p in (folder / e["path"] for e in yaml.safe_load((folder / "kustomization.yaml").read_text()).get("patches", ()) if "path" in e)}  # fmt: skip
ADVICE = ("image",)
"""Placeholders of images are advice; nothing else may be."""


def name_of(path: Path) -> str:
    return str(path.relative_to(K8S))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_kustomization_builds_and_nothing_in_it_is_wrong(folder):
    objects = built(folder)
    faults = faults_of(objects)
    assert [f for f in faults if f.severe] == []
    assert [f for f in faults if not f.field.endswith(ADVICE)] == []
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))


def test_every_manifest_is_in_a_kustomization_and_says_what_it_is_for():
    listed = {(folder / name).resolve() for folder in FOLDERS for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]}  # fmt: skip
    for path in FILES:
        text = path.read_text()
        assert text.startswith("#"), f"{path}: the first line says what it is for"
        for document in text.split("\n---\n"):
            assert document.startswith("#"), f"{path}: {document[:60]!r} does not say what it is for"
        if "\nkind: " in text and path.name != "kustomization.yaml":
            assert path.resolve() in listed, f"{path} is in no kustomization"


def test_nothing_names_a_real_account_registry_or_secret():
    for path in K8S.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "kind: Secret\n" not in text, path
            assert not [
                w for w in ("pypi", "index-url", "password: ", "AKIA") if w in text.lower() and w != "password: "
            ], path


def all_objects(*folders: str) -> list[dict[str, Any]]:
    return [o for folder in folders for o in built(K8S / folder)]


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def test_the_role_of_the_orchestrator_is_what_the_doctor_asks_for_and_no_more():
    rules = one(built(K8S / "workers/base"), "Role", "ft-orchestrator")["rules"]
    given = {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    needed = {(group, resource, verb) for group, resource, verbs in NEEDS for verb in verbs}
    assert given - needed == {("kueue.x-k8s.io", "workloads", v) for v in ("get", "list")} and needed <= given


@pytest.mark.parametrize("cloud", PROFILES)
def test_what_a_profile_names_is_what_its_overlay_makes(cloud):
    profile, objects = PROFILES[cloud], built(K8S / "workers/overlays" / cloud)
    assert one(objects, "Namespace", profile.namespace)
    account = one(objects, "ServiceAccount", profile.service_account)
    assert account["automountServiceAccountToken"] is False
    assert bool(account["metadata"].get("annotations")) == (cloud != "bare")
    assert one(objects, "PriorityClass", profile.priority_class)["preemptionPolicy"] == "Never"
    queues = K8S / "workers/kueue" / cloud
    if profile.spot_label and queues.is_dir():
        key, value = profile.spot_label
        assert one(built(queues), "ResourceFlavor", "ft-spot")["spec"]["nodeLabels"] == {key: value}


def test_karpenter_may_make_every_machine_that_the_profile_asks_for():
    pool = one(built(K8S / "workers/overlays/eks-karpenter"), "NodePool", "ft-gpu")["spec"]["template"]["spec"]
    wanted = {value for values in PROFILES["eks-karpenter"].gpu_values.values() for value in values}
    (types,) = [r["values"] for r in pool["requirements"] if r["key"] == "node.kubernetes.io/instance-type"]
    assert wanted == set(types)
    assert {t["key"] for t in pool["taints"]} <= {t.key for t in PROFILES["eks-karpenter"].gpu_tolerations}


def test_flavors_and_queues_name_each_other():
    objects = built(K8S / "workers/kueue/base")
    flavors = {o["metadata"]["name"] for o in objects if o["kind"] == "ResourceFlavor"}
    queue = one(objects, "ClusterQueue", "ft-gpu")["spec"]
    assert {f["name"] for group in queue["resourceGroups"] for f in group["flavors"]} == flavors
    assert one(objects, "LocalQueue", "gpu")["spec"]["clusterQueue"] == "ft-gpu"


def test_accounts_classes_and_config_maps_that_pods_name_are_made_here():
    objects = all_objects("workers/overlays/bare", "dagster/plain", "serving")
    made = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects}
    for o in objects:
        if o["kind"] != "Deployment":
            continue
        space, pod = o["metadata"]["namespace"], o["spec"]["template"]["spec"]
        assert ("ServiceAccount", space, pod["serviceAccountName"]) in made
        if "priorityClassName" in pod:
            assert ("PriorityClass", None, pod["priorityClassName"]) in made
        sources = [s["configMapRef"]["name"] for c in pod["containers"] for s in c.get("envFrom", ()) if "configMapRef" in s]  # fmt: skip
        assert all(("ConfigMap", space, name) in made for name in sources)
        assert o["spec"]["selector"]["matchLabels"].items() <= o["spec"]["template"]["metadata"]["labels"].items()


def test_a_pool_is_reached_by_the_gateway_and_not_by_the_world():
    objects = built(K8S / "serving")
    assert {o["spec"].get("type", "ClusterIP") for o in objects if o["kind"] == "Service"} == {"ClusterIP"}
    policy = one(objects, "NetworkPolicy", "pools")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "vllm"}
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "ft-gateway"}
    pool = one(objects, "Deployment", "pool-llama31-8b")["spec"]["template"]["spec"]["containers"][0]
    # the starter alone knows what a replica needs (serve/vllm_server.py): nothing of it is written twice
    assert pool["command"] == ["python", "-m", "ft_pipeline.serve.vllm_server"]
    assert not [v["name"] for v in pool["env"] if v["name"].startswith("VLLM_")]
    known = {field.name for field in dataclasses.fields(Settings)}
    assert {v["name"].removeprefix("FT_").lower() for v in pool["env"] if v["name"].startswith("FT_VLLM")} <= known
