"""Twenty-one manifests and settings that are broken on purpose: each is refused before submission, with the field and the cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ft_pipeline.errors import FtError, RecipeError
from ft_pipeline.workers.kubernetes.checks import faults_of, refuse_faults
from ft_pipeline.workers.kubernetes.profile import PROFILES
from ft_pipeline.workers.placed import placement_of
from ft_pipeline_tests.k8s.rendered import ISSUE, profile_of, run_of_issue

Objects = list[dict[str, Any]]


@pytest.fixture(scope="module")
def good() -> Objects:
    return run_of_issue()


def spec(made: Objects) -> dict[str, Any]:
    return made[0]["spec"]


def pod(made: Objects) -> dict[str, Any]:
    return spec(made)["template"]["spec"]


def trainer(made: Objects) -> dict[str, Any]:
    return pod(made)["containers"][0]


def rule(made: Objects, number: int) -> dict[str, Any]:
    return spec(made)["podFailurePolicy"]["rules"][number]


BROKEN: dict[str, tuple[Callable[[Objects], Any], str, str]] = {
    "completion mode": (lambda m: spec(m).update(completionMode="Index"), "spec.completionMode", "Indexed"),
    "rule action": (lambda m: rule(m, 0).update(action="Fail"), "rules[0].action", "FailJob"),
    "restart policy": (lambda m: pod(m).update(restartPolicy="Always"), "restartPolicy", "Never"),
    "restart with a failure policy": (lambda m: pod(m).update(restartPolicy="OnFailure"), "restartPolicy", "Never"),
    "container of a rule": (lambda m: rule(m, 0)["onExitCodes"].update(containerName="main"), "containerName", "trainer"),
    "unsorted exit codes": (lambda m: rule(m, 2)["onExitCodes"].update(values=[143, 75]), "onExitCodes.values", "[75, 143]"),
    "exit code 0": (lambda m: rule(m, 2)["onExitCodes"].update(values=[0, 75, 143]), "onExitCodes.values", "remove 0"),
    "name": (lambda m: m[0]["metadata"].update(name="FT_Run"), "metadata.name", "lower-case"),
    "quantity": (lambda m: trainer(m)["resources"]["limits"].update(memory="64GiB"), "limits.memory", "64Gi"),
    "GPUs overcommitted": (lambda m: trainer(m)["resources"]["limits"].update({"nvidia.com/gpu": "2"}), "limits.nvidia.com/gpu", "the same"),
    "mount without a volume": (lambda m: pod(m)["volumes"].pop(), "volumeMounts[spec]", "one of"),
    "label value": (lambda m: m[0]["metadata"]["labels"].update(team="a b"), "metadata.labels.team", "63"),
    "two writers": (lambda m: spec(m).update(podReplacementPolicy="TerminatingOrFailed"), "spec.podReplacementPolicy", "Failed"),
    "port": (lambda m: trainer(m)["ports"][0].update(containerPort=99999), "containerPort", "65535"),
    "a NaN is tried again": (lambda m: rule(m, 0)["onExitCodes"].update(values=[41]), "spec.podFailurePolicy.rules", "FailJob on [42]"),
    "grace too short": (lambda m: pod(m).update(terminationGracePeriodSeconds=30), "terminationGracePeriodSeconds", "at least 102"),
    "capability": (lambda m: trainer(m)["securityContext"]["capabilities"].update(add=["IPC_LOCK"]), "capabilities.add", "memlock"),
    "host path": (lambda m: pod(m)["volumes"][2].update(emptyDir=None, hostPath={"path": "/mnt"}), "volumes[cache].hostPath", "emptyDir"),
    "no toleration": (lambda m: pod(m).update(tolerations=[]), "spec.template.spec.tolerations", "nvidia.com/gpu"),
    "Service of another name": (lambda m: m[1]["metadata"].update(name="other"), "subdomain", "headless Service"),
    "misspelt field": (lambda m: spec(m).update(ttlSecondsAfterFinish=9), "(top)", "schema"),
}  # fmt: skip
"""Name -> how it is broken, the field that is named, a word of the cure."""


def broken(good: Objects, change: Callable[[Objects], Any]) -> Objects:
    import copy

    made = copy.deepcopy(good)
    change(made)
    return made


def test_there_are_twenty_one_and_the_whole_one_is_whole(good):
    assert len(BROKEN) == 21
    assert faults_of(good, profile=profile_of()) == []


@pytest.mark.parametrize("name", BROKEN)
def test_each_is_refused_with_field_and_cure(good, name):
    change, field, cure = BROKEN[name]
    faults = [f for f in faults_of(broken(good, change), profile=profile_of()) if f.severe]
    assert [f for f in faults if field in f.field and cure in f.cure] or (name == "misspelt field" and faults), faults


def test_submission_refuses_all_but_what_only_a_schema_sees(good):
    for name, (change, *_) in BROKEN.items():
        if name == "misspelt field":
            continue
        with pytest.raises(RecipeError) as refused:
            refuse_faults(broken(good, change), profile_of())
        assert refused.value.cure, name


MORE: dict[str, tuple[Callable[[Objects], Any], str]] = {
    "backoffLimit": (lambda m: spec(m).update(backoffLimit=6), "spec.backoffLimit"),
    "half a gang": (lambda m: spec(m).update(parallelism=1), "spec.parallelism"),
    "no ttl": (lambda m: spec(m).pop("ttlSecondsAfterFinished"), "spec.ttlSecondsAfterFinished"),
    "no deadline": (lambda m: spec(m).pop("activeDeadlineSeconds"), "spec.activeDeadlineSeconds"),
    "lost nodes are counted": (lambda m: spec(m)["podFailurePolicy"]["rules"].pop(1), "spec.podFailurePolicy.rules"),
    "crashes are not counted": (lambda m: rule(m, 2)["onExitCodes"].update(values=[1, 75, 143]), "spec.podFailurePolicy.rules"),
    "no /dev/shm": (lambda m: trainer(m)["volumeMounts"].pop(0), "spec.template.spec.volumes"),
    "root": (lambda m: pod(m)["securityContext"].update(runAsUser=0), "securityContext.runAsUser"),
    "host IPC": (lambda m: pod(m).update(hostIPC=True), "spec.template.spec.hostIPC"),
    "secret in plain text": (lambda m: trainer(m)["env"].append({"name": "HF_TOKEN", "value": "hf_x"}), "env[HF_TOKEN]"),
    "a long name": (lambda m: m[0]["metadata"].update(name="a" * 62), "metadata.name"),
    "an address for the gang": (lambda m: m[1]["spec"].update(clusterIP="10.0.0.1"), "Service.spec.clusterIP"),
    "job.json of another run": (lambda m: spec(m).update(completions=3, parallelism=3), "spec.completions"),
    "an owner of another name": (lambda m: m[1]["metadata"].update(ownerReferences=[{"apiVersion": "batch/v1", "kind": "Job", "name": "x", "uid": "u"}]), "metadata.ownerReferences"),
    "another namespace": (lambda m: m[0]["metadata"].update(namespace="default"), "metadata.namespace"),
    "another account": (lambda m: pod(m).update(serviceAccountName="default"), "serviceAccountName"),
}  # fmt: skip


@pytest.mark.parametrize("name", MORE)
def test_what_a_server_accepts_and_loses_work_is_refused_too(good, name):
    change, field = MORE[name]
    faults = faults_of(broken(good, change), profile=profile_of(), kubernetes=None)
    assert [f for f in faults if f.severe and field in f.field], faults


def test_the_spot_taint_of_a_cloud_must_be_tolerated():
    made = run_of_issue("aks")
    pod(made)["tolerations"] = [t for t in pod(made)["tolerations"] if "azure" not in t["key"]]
    assert ["kubernetes.azure.com" in f.what for f in faults_of(made, profile=profile_of("aks"), kubernetes=None)] == [
        True
    ]


def test_an_image_that_moves_is_advice(good):
    made = broken(good, lambda m: trainer(m).update(image="repo:latest"))
    (only,) = faults_of(made, profile=profile_of())
    assert not only.severe and "sha256" in only.cure


SETTINGS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown GPU": (lambda: placement_of({**ISSUE, "gpu": "h100"}), "h100-80gb"),
    "no nodes": (lambda: placement_of({**ISSUE, "nodes": 0}), "at least 1"),
    "misspelt field": (lambda: placement_of({**ISSUE, "spott": True}), "did you mean spot"),
    "two machines here": (lambda: placement_of({"kind": "local", "nodes": 2}), "worker: kubernetes"),
    "no time to leave": (lambda: profile_of(grace_seconds=60), "shutdown_seconds to 50"),
    "no L40S at Google": (lambda: run_of_issue("gke", gpu="l40s-48gb"), "profile gke has no label"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_are_refused(name):
    change, says = SETTINGS[name]
    with pytest.raises(FtError) as refused:
        change()
    assert says in str(refused.value)


@pytest.mark.parametrize("cloud", PROFILES)
@pytest.mark.parametrize("gpu", ["a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb", "l40s-48gb"])
def test_every_cloud_and_gpu_renders_what_passes(cloud, gpu):
    if gpu not in PROFILES[cloud].gpu_values:
        return
    made = run_of_issue(cloud, gpu=gpu, processes=8)
    assert faults_of(made, profile=profile_of(cloud), kubernetes=None) == []
