"""From a Job, its Placement and the Profile of a cluster to a batch/v1 Job, a headless Service and a ConfigMap. Pure.

Why each field is what it is: docs/kubernetes-jobs.md; measured against Kubernetes v1.36.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from ft_pipeline.errors import RecipeError, did_you_mean
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.kubernetes.profile import Profile, Toleration
from ft_pipeline.workers.outcome import FAILED_FOR_GOOD, PREEMPTED, STOPPED

Market = Literal["spot", "on-demand"]
Manifest = dict[str, Any]

RENDEZVOUS_PORT = 29400
CONTAINER = "trainer"
SPEC_FOLDER, CACHE_FOLDER = "/spec", "/cache"
LAUNCHER = "ft_pipeline.workers.kubernetes.launcher"
GENERATION, MARKET, FINGERPRINT = "ft-pipeline/generation", "ft-pipeline/market", "ft-pipeline/fingerprint"
"""Annotations of the Job."""
WITHOUT_GPU = ("raw_dataset", "curated_dataset", "benchmark_index", "packed_shards")
RETRIES_PER_INDEX = 3
LOST_NODE_SECONDS = 30
"""Not 300, which the server adds: a training gang waits for the pod of a dead node."""


def job_name(job: Job) -> str:
    """The same for the same work, so that whoever comes second finds the Job of the first. At most 61 characters, a DNS label."""
    kind = re.sub(r"[^a-z0-9]+", "-", job.spec.kind.lower()).strip("-")
    return f"ft-{kind[:32]}-{job.spec.fingerprint[:20]}"


def manifests(
    job: Job, placement: Placement, profile: Profile, *, generation: str = "rendered", market: Market | None = None
) -> list[Manifest]:
    """The Job, then what belongs to it: Service and ConfigMap. The same arguments give the same bytes.

    market: which nodes; None: spot when the placement and the profile have it. generation: of the run's messages.
    Raises RecipeError for a GPU that the profile has no label for.
    """
    name = job_name(job)
    placement = shape(job, placement)
    market = market or first_market(placement, profile)
    labels = {"app.kubernetes.io/managed-by": "ft-pipeline", "app.kubernetes.io/component": "trainer"}
    about = {"name": name, "namespace": profile.namespace, "labels": labels}
    inside = replace(job, placement=placement, folder=PurePosixPath(CACHE_FOLDER, "run"))  # type: ignore[arg-type]
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                **about,
                "labels": labels | _queue_labels(profile),
                "annotations": {GENERATION: generation, MARKET: market, FINGERPRINT: job.spec.fingerprint},
            },
            "spec": _job_spec(job, placement, profile, market=market, generation=generation),
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": about,
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": {"batch.kubernetes.io/job-name": name},
                "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
            },
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"job.json": inside.to_json()}},
    ]


def first_market(placement: Placement, profile: Profile) -> Market:
    """Where an attempt begins."""
    return "spot" if placement.spot and profile.spot_label else "on-demand"


def shape(job: Job, placement: Placement) -> Placement:
    """The placement as the kind of job can use it: only training spreads over processes, only work on a model needs a GPU."""
    if job.spec.kind == "checkpoints":
        return placement
    alone = replace(placement, nodes=1, processes=1, sharding="none")
    return replace(alone, device="cpu", gpu=None) if job.spec.kind in WITHOUT_GPU else alone


def _job_spec(job: Job, placement: Placement, profile: Profile, *, market: Market, generation: str) -> Manifest:
    template = {
        "metadata": {
            "labels": {"app.kubernetes.io/managed-by": "ft-pipeline", "app.kubernetes.io/component": "trainer"},
            "annotations": dict(profile.pod_annotations),
        },
        "spec": _pod_spec(job, placement, profile, market=market, generation=generation),
    }
    return {
        "completionMode": "Indexed",
        "completions": placement.nodes,
        "parallelism": placement.nodes,
        # per index the back-off is 10, 20, 40 s whatever the number of nodes; job-wide it would be 10 min from seven lost nodes on
        "backoffLimitPerIndex": RETRIES_PER_INDEX,
        "maxFailedIndexes": 0,
        # never two writers for one index
        "podReplacementPolicy": "Failed",
        "activeDeadlineSeconds": profile.deadline_seconds,
        "ttlSecondsAfterFinished": profile.keep_seconds,
        "podFailurePolicy": {
            "rules": [
                _on_exit("FailJob", FAILED_FOR_GOOD),
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                _on_exit("Ignore", PREEMPTED, STOPPED),
            ]
        },
        "template": template,
    }


def _on_exit(action: str, *codes: int) -> Manifest:
    return {
        "action": action,
        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": sorted(codes)},
    }


def _pod_spec(job: Job, placement: Placement, profile: Profile, *, market: Market, generation: str) -> Manifest:
    pod: Manifest = {
        "restartPolicy": "Never",
        "subdomain": job_name(job),
        "serviceAccountName": profile.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": profile.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": _tolerations(placement, profile, market=market),
        "affinity": _affinity(job, placement, profile, market=market),
        "containers": [_container(job, placement, profile, generation=generation)],
        "volumes": [
            # the runtime's default of 64 MiB is too small for NCCL; counts against the memory limit
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shm_gib(placement, profile)}Gi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": f"{profile.tmp_gib}Gi"}},
            {"name": "cache", "emptyDir": {"sizeLimit": f"{profile.cache_gib}Gi"}},
            {"name": "spec", "configMap": {"name": job_name(job)}},
        ],
    }  # fmt: skip
    if profile.priority_class:
        pod["priorityClassName"] = profile.priority_class
    return {key: value for key, value in pod.items() if value != {}}


def _container(job: Job, placement: Placement, profile: Profile, *, generation: str) -> Manifest:
    several = placement.nodes > 1
    fabric = (
        {name: str(count) for name, count in profile.fabric_of(placement.gpu, placement.processes).items()}
        if several
        else {}
    )
    devices, gpu = dict(fabric), placement.device == "cuda"
    if gpu:
        devices[profile.gpu_resource] = str(placement.processes)
    memory_gib = profile.memory_gib_per_process if gpu else profile.memory_gib_without_gpu
    memory = f"{memory_gib * placement.processes}Gi"
    cores = profile.cpu_per_process if gpu else placement.threads
    variables = {
        # with it a replaced node can join a surviving agent; without it both wait 155 s and exit 1 (measured)
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "HOME": "/tmp",  # noqa: S108 - the pod's own emptyDir: the root of the image is read-only
        "FT_HOME": f"{CACHE_FOLDER}/home",
        "FT_MLFLOW": "off",
        "FT_THREADS": str(placement.threads),
        **(profile.fabric_environment if several else {}),
        **profile.environment,
    }
    return {
        "name": CONTAINER,
        "image": profile.image,
        "command": [profile.python, "-m", LAUNCHER],
        "args": _arguments(job, placement, profile, generation=generation),
        # the last lines of the log become the pod's message when it wrote none
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": [{"name": name, "value": variables[name]} for name in sorted(variables)]
        + [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        **_credentials(profile),
        "ports": [{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT}],
        "resources": {
            "requests": {"cpu": str(cores * placement.processes), "memory": memory, **devices},
            "limits": {"memory": memory, **devices},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "cache", "mountPath": CACHE_FOLDER},
            {"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True},
        ],
    }  # fmt: skip


def _credentials(profile: Profile) -> Manifest:
    secret = {"secretRef": {"name": profile.credentials, "optional": True}}
    return {"envFrom": [secret]} if profile.credentials else {}


def _shm_gib(placement: Placement, profile: Profile) -> int:
    return profile.shm_gib_per_process * placement.processes if placement.device == "cuda" else 1


def _arguments(job: Job, placement: Placement, profile: Profile, *, generation: str) -> list[str]:
    """Of the launcher. $(JOB_COMPLETION_INDEX) expands in arguments, not in the value of another variable (measured)."""
    name = job_name(job)
    return [
        f"--nodes={placement.nodes}",
        f"--processes={placement.processes}",
        f"--name={name}",
        f"--host={name}-0.{name}:{RENDEZVOUS_PORT}",
        f"--address={name}-$(JOB_COMPLETION_INDEX).{name}",
        f"--shutdown-seconds={profile.shutdown_seconds}",
        f"--folder={CACHE_FOLDER}/run",
        f"--generation={generation}",
        job.module,
        f"{SPEC_FOLDER}/job.json",
    ]


def _tolerations(placement: Placement, profile: Profile, *, market: Market) -> list[Manifest]:
    lost = [
        Toleration(key=f"node.kubernetes.io/{what}", effect="NoExecute", seconds=LOST_NODE_SECONDS)
        for what in ("unreachable", "not-ready")
    ]
    gpu = profile.gpu_tolerations if placement.device == "cuda" else ()
    spot = profile.spot_tolerations if market == "spot" else ()
    return [_toleration(toleration) for toleration in (*gpu, *spot, *lost)]


def _toleration(toleration: Toleration) -> Manifest:
    made: Manifest = {"key": toleration.key, "operator": "Exists" if toleration.value is None else "Equal"}
    if toleration.value is not None:
        made["value"] = toleration.value
    if toleration.effect is not None:
        made["effect"] = toleration.effect
    if toleration.seconds is not None:
        made["tolerationSeconds"] = toleration.seconds
    return made


def _affinity(job: Job, placement: Placement, profile: Profile, *, market: Market) -> Manifest:
    """The kind of GPU and the market are required; nodes of one zone are preferred, for traffic between zones is slow and costs."""
    wanted = []
    if placement.gpu is not None:
        wanted.append(_among(profile.gpu_label, *_values(placement.gpu, profile.gpu_values, profile.name)))
    if placement.spot and profile.spot_label is not None:
        key, value = profile.spot_label
        wanted.append({"key": key, "operator": "In" if market == "spot" else "NotIn", "values": [value]})
    made: Manifest = {}
    if wanted:
        terms = {"nodeSelectorTerms": [{"matchExpressions": wanted}]}
        made["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    if placement.nodes > 1:
        near = {"matchLabels": {"batch.kubernetes.io/job-name": job_name(job)}}
        term = {"topologyKey": profile.zone_label, "labelSelector": near}
        preferred = [{"weight": 100, "podAffinityTerm": term}]
        made["podAffinity"] = {"preferredDuringSchedulingIgnoredDuringExecution": preferred}
    return made


def _among(key: str, *values: str) -> Manifest:
    return {"key": key, "operator": "In", "values": list(values)}


def _values(gpu: str, known: Mapping[str, tuple[str, ...]], profile: str) -> tuple[str, ...]:
    if gpu not in known:
        raise RecipeError(f"profile {profile} has no label for GPU {gpu!r}: {did_you_mean(gpu, known)}")
    return known[gpu]


def _queue_labels(profile: Profile) -> dict[str, str]:
    if profile.queue is None:
        return {}
    priority = {"kueue.x-k8s.io/priority-class": profile.queue.priority} if profile.queue.priority else {}
    return {"kueue.x-k8s.io/queue-name": profile.queue.name, **priority}
