"""Rules of a pod: Pod Security `restricted`, resources, volumes, ports, images, and no secret in plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ft_pipeline.workers.kubernetes.found import QUANTITY, Found, part, rows

VOLUMES = frozenset({
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
})  # fmt: skip
"""Kinds of volume that `restricted` allows."""
SECCOMP = ("RuntimeDefault", "Localhost")
SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|CREDENTIAL|API_KEY|ACCESS_KEY)")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
GPUS = ("nvidia.com/gpu", "amd.com/gpu")
SHM = "/dev/shm"  # noqa: S108


def pod_faults(pod: Mapping[str, Any], where: str) -> Iterator[Found]:
    """Of a pod's spec; `where` is the field that holds it."""
    yield from _pod_security(pod, where)
    containers = rows(pod, "containers") + rows(pod, "initContainers")
    for container in containers:
        inside = f"{where}.containers[{container.get('name', '?')}]"
        yield from _security(container, pod, inside)
        yield from _resources(container, inside)
        yield from _mounts(container, pod, inside)
        yield from _plain(container, inside)
    if any(_gpus(container) for container in containers):
        yield from _gpu_pod(pod, containers, where)


def _pod_security(pod: Mapping[str, Any], where: str) -> Iterator[Found]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield (
                f"{where}.{field}",
                "is refused by Pod Security",
                "remove it; /dev/shm is an emptyDir of medium Memory",
            )
    for volume in rows(pod, "volumes"):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield (
                f"{where}.volumes[{volume.get('name')}].{kind}",
                "is refused by Pod Security",
                "an emptyDir, or an ephemeral claim",
            )
    if pod.get("automountServiceAccountToken") is not False and "serviceAccountName" not in pod:
        yield f"{where}.automountServiceAccountToken", "the pod gets a token of the API server", "false"


def _security(container: Mapping[str, Any], pod: Mapping[str, Any], inside: str) -> Iterator[Found]:
    own, all_of = part(container, "securityContext"), part(pod, "securityContext")
    where = f"{inside}.securityContext"
    if own.get("runAsNonRoot", all_of.get("runAsNonRoot")) is not True:
        yield f"{where}.runAsNonRoot", "is not true: refused by Pod Security", "runAsNonRoot: true, runAsUser: 65532"
    if own.get("runAsUser", all_of.get("runAsUser")) == 0:
        yield f"{where}.runAsUser", "0 is root", "65532"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield f"{where}.allowPrivilegeEscalation", "is not false: refused by Pod Security", "false, and no privileged"
    capabilities = part(own, "capabilities")
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f"{where}.capabilities.drop", "does not drop ALL: refused by Pod Security", "drop: [ALL]"
    if added := set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"{where}.capabilities.add", f"{', '.join(sorted(added))} is refused by Pod Security", "remove it; memlock for RDMA is the runtime's ulimit"  # fmt: skip
    if part(own, "seccompProfile").get("type", part(all_of, "seccompProfile").get("type")) not in SECCOMP:
        yield f"{where}.seccompProfile", "is missing: refused by Pod Security", "type: RuntimeDefault"
    if own.get("readOnlyRootFilesystem") is not True:
        yield f"{where}.readOnlyRootFilesystem", "is not true", "advice: true, with an emptyDir where it writes"


def _resources(container: Mapping[str, Any], inside: str) -> Iterator[Found]:
    requests, limits = part(container, "resources", "requests"), part(container, "resources", "limits")
    for field, said in (("requests", requests), ("limits", limits)):
        for name, value in said.items():
            if not QUANTITY.fullmatch(str(value)):
                yield f"{inside}.resources.{field}.{name}", f"{value!r} is no quantity", "64Gi, 500m, 8"
    for name in sorted({*requests, *limits}):
        if "/" in name and requests.get(name, limits.get(name)) != limits.get(name):
            yield f"{inside}.resources.limits.{name}", f"{limits.get(name)} of {requests.get(name)} requested", "the same: devices cannot be overcommitted"  # fmt: skip
    for name in ("cpu", "memory"):
        if name not in requests:
            yield (
                f"{inside}.resources.requests.{name}",
                "is missing: the pod lands where there is no room",
                "say what it needs",
            )
    if "memory" not in limits:
        yield (
            f"{inside}.resources.limits.memory",
            "is missing: the node runs out of memory, not the pod",
            "the same as requested",
        )


def _mounts(container: Mapping[str, Any], pod: Mapping[str, Any], inside: str) -> Iterator[Found]:
    volumes = {volume.get("name") for volume in rows(pod, "volumes")}
    for mount in rows(container, "volumeMounts"):
        if mount.get("name") not in volumes:
            yield (
                f"{inside}.volumeMounts[{mount.get('name')}]",
                "there is no such volume",
                f"one of {', '.join(sorted(map(str, volumes)))}",
            )
    for port in rows(container, "ports"):
        number = port.get("containerPort")
        if not isinstance(number, int) or not 0 < number < 65536:
            yield f"{inside}.ports.containerPort", f"{number} is no port", "a number from 1 to 65535"


def _plain(container: Mapping[str, Any], inside: str) -> Iterator[Found]:
    for variable in rows(container, "env"):
        value = str(variable.get("value") or "")
        if value and not value.startswith("/") and SECRET.search(str(variable.get("name", "")).upper()):
            yield (
                f"{inside}.env[{variable['name']}]",
                "a secret in plain text",
                "valueFrom.secretKeyRef, or a file of a secret volume",
            )
    image = str(container.get("image", ""))
    if not DIGEST.fullmatch(image):
        yield f"{inside}.image", f"{image!r} is not pinned: two pods of a gang may run other code", "advice: repository@sha256:... (FT_IMAGE)"  # fmt: skip
    elif image.endswith("0" * 64):
        yield f"{inside}.image", "is a placeholder", "advice: the digest of your build (k8s/image)"


def _gpus(container: Mapping[str, Any]) -> bool:
    return any(name in part(container, "resources", "limits") for name in GPUS)


def _gpu_pod(pod: Mapping[str, Any], containers: list[Mapping[str, Any]], where: str) -> Iterator[Found]:
    if not any(t.get("key") in (*GPUS, None) and t.get("operator") == "Exists" for t in rows(pod, "tolerations")):
        yield f"{where}.tolerations", "no toleration of nvidia.com/gpu: GPU nodes are tainted, the pod waits for ever", "{key: nvidia.com/gpu, operator: Exists}"  # fmt: skip
    memory = {v.get("name") for v in rows(pod, "volumes") if part(v, "emptyDir").get("medium") == "Memory"}
    mounted = {m.get("name") for c in containers for m in rows(c, "volumeMounts") if m.get("mountPath") == SHM}
    if not memory & mounted:
        yield f"{where}.volumes", f"{SHM} is the runtime's 64 MiB: NCCL and data loaders die with a bus error", "an emptyDir of medium Memory at /dev/shm"  # fmt: skip
