"""Whether a cluster is ready for jobs: reached, allowed, protected, with GPUs and queues; and the cure of what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ft_pipeline.workers.kubernetes.client import ApiError
from ft_pipeline.workers.kubernetes.found import part, rows
from ft_pipeline.workers.kubernetes.looking import Looking
from ft_pipeline.workers.kubernetes.profile import Profile

Finding = tuple[str, str, str]
"""State (`ok`, `missing`, `optional`), what was seen, the cure."""
APPLY = "kubectl apply -k k8s/workers/overlays/..."
QUEUES = "kubectl apply -k k8s/workers/kueue/..."
NEEDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("batch", "jobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("", "services", ("create", "get", "delete")),
    ("", "configmaps", ("create", "get", "delete")),
    ("", "pods", ("get", "list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("get", "list", "watch")),
)
"""Group, resource, verbs that running a job takes: the Role of k8s/workers says the same."""
OLDEST = (1, 33)
"""backoffLimitPerIndex and podReplacementPolicy are there from 1.33 and 1.34 on without a gate."""


def findings(cluster: Looking, profile: Profile) -> Iterator[tuple[str, Finding]]:
    """(what was checked, finding). When the API server does not answer, that alone."""
    try:
        yield "API server", _server(cluster)
    except ApiError as error:
        yield "API server", ("missing", error.message, "check KUBECONFIG, its context, and the way to the API server")
        return
    for name, check in CHECKS.items():
        try:
            for finding in check(cluster, profile):
                yield name, finding
        except ApiError as error:
            yield name, ("optional", f"cannot be seen: {error.message}", "ask with an account that may read it")


def _server(cluster: Looking) -> Finding:
    said = cluster.found("/version") or {}
    numbers = tuple(int("".join(filter(str.isdigit, str(said.get(k, "")))) or 0) for k in ("major", "minor"))
    seen = f"Kubernetes {said.get('gitVersion', 'of unknown version')}"
    if numbers < OLDEST:
        return (
            "missing",
            seen,
            f"upgrade to {'.'.join(map(str, OLDEST))} or later: a Job's back-off per index is needed",
        )
    return "ok", seen, ""


def _namespace(cluster: Looking, profile: Profile) -> Iterator[Finding]:
    found = cluster.found(f"/api/v1/namespaces/{profile.namespace}")
    if found is None:
        yield "missing", f"there is no namespace {profile.namespace}", f"{APPLY}, or set FT_NAMESPACE"
        return
    said = part(found, "metadata", "labels").get("pod-security.kubernetes.io/enforce")
    cure = (
        ""
        if said == "restricted"
        else f"kubectl label namespace {profile.namespace} pod-security.kubernetes.io/enforce=restricted"
    )
    yield (
        "ok" if said == "restricted" else "optional",
        f"{profile.namespace}, Pod Security {said or 'not enforced'}",
        cure,
    )


def _permissions(cluster: Looking, _profile: Profile) -> Iterator[Finding]:
    lacking = []
    for group, resource, verbs in NEEDS:
        name, _, sub = resource.partition("/")
        lacking += [f"{verb} {resource}" for verb in verbs if not cluster.may(verb, group, name, subresource=sub)]
    if lacking:
        yield "missing", f"may not {', '.join(lacking)}", f"bind Role ft-orchestrator to this account ({APPLY})"
        return
    yield "ok", f"all that a run takes, in {cluster.namespace}", ""


def _account(cluster: Looking, profile: Profile) -> Iterator[Finding]:
    path = f"/api/v1/namespaces/{profile.namespace}/serviceaccounts/{profile.service_account}"
    yield _there(cluster, path, f"ServiceAccount {profile.service_account}", cure=APPLY)
    if profile.priority_class:
        path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{profile.priority_class}"
        yield _there(cluster, path, f"PriorityClass {profile.priority_class}", cure=APPLY)


def _there(cluster: Looking, path: str, name: str, *, cure: str) -> Finding:
    if cluster.found(path) is None:
        return "missing", f"{name} is not there: no pod starts", cure
    return "ok", name, ""


def _gpus(cluster: Looking, profile: Profile) -> Iterator[Finding]:
    nodes = rows(cluster.found("/api/v1/nodes") or {}, "items")
    counted: Counter[str] = Counter()
    for node in nodes:
        count = int(part(node, "status", "allocatable").get(profile.gpu_resource, 0))
        if count:
            counted[_kind(node, profile)] += count
    if counted:
        yield "ok", ", ".join(f"{count} x {kind}" for kind, count in sorted(counted.items())), ""
        return
    yield (
        "optional",
        f"no node of {len(nodes)} has {profile.gpu_resource} now",
        "fine where an autoscaler makes nodes for pods; else install NVIDIA's device plugin",
    )


def _kind(node: Any, profile: Profile) -> str:
    """The name that a placement uses, else the label's value."""
    value = str(part(node, "metadata", "labels").get(profile.gpu_label, "GPU without label " + profile.gpu_label))
    return next((name for name, values in profile.gpu_values.items() if value in values), value)


def _kueue(cluster: Looking, profile: Profile) -> Iterator[Finding]:
    there = cluster.found("/apis/kueue.x-k8s.io")
    if there is None:
        state = "missing" if profile.queue else "optional"
        yield (
            state,
            "Kueue is not installed; jobs start when pods find nodes",
            f"install Kueue, then {QUEUES}",
        )
        return
    yield "ok", "Kueue is installed", ""
    if profile.queue is not None:
        path = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{profile.namespace}/localqueues/{profile.queue.name}"
        yield _there(cluster, path, f"LocalQueue {profile.queue.name}", cure=QUEUES)


CHECKS: dict[str, Callable[[Looking, Profile], Iterator[Finding]]] = {
    "namespace": _namespace,
    "permissions": _permissions,
    "objects": _account,
    "GPUs": _gpus,
    "queue": _kueue,
}
