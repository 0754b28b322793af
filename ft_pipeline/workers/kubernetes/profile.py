"""What a cluster is like: labels of GPUs and spot nodes, taints, grace, names of what its owner made. Never hashed.

`bare` is a cluster with NVIDIA's device plugin and nothing else. What no profile can know (image, namespace, environment) is set
with `dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ft_pipeline.errors import RecipeError
from ft_pipeline.workers.gpus import PRODUCTS

STAYS: Mapping[str, str] = MappingProxyType(
    {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
)
"""Annotations against the voluntary consolidation of nodes. A PodDisruptionBudget would block every eviction (measured)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Toleration:
    """Of a taint. `value` None: whatever its value."""

    key: str
    value: str | None = None
    effect: str | None = "NoSchedule"
    seconds: int | None = None
    """How long a pod stays on a node with this taint (NoExecute); None: for ever."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """Of Kueue: the labels that put a Job into a queue."""

    name: str
    priority: str | None = None
    """A WorkloadPriorityClass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One kind of cluster, and how a training pod is shaped there."""

    name: str
    namespace: str = "ft-train"
    image: str = "ft-pipeline-worker:latest"
    """Pin it by digest: `repository@sha256:...`."""
    gpu_resource: str = "nvidia.com/gpu"
    gpu_label: str = "nvidia.com/gpu.product"
    gpu_values: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PRODUCTS)
    """Name of a GPU in a placement -> values of gpu_label."""
    gpu_tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu"),)
    spot_label: tuple[str, str] | None = None
    """Label and value of spot nodes. None: the cluster does not tell them apart, so spot is not asked for."""
    spot_tolerations: tuple[Toleration, ...] = ()
    zone_label: str = "topology.kubernetes.io/zone"
    grace_seconds: int = 120
    """terminationGracePeriodSeconds: what a spot node still gives a pod after its notice."""
    shutdown_seconds: int = 100
    """What the launcher gives the trainer to save; less than the grace, for the rest travels to the store."""
    fabric: Mapping[str, int] = field(default_factory=dict)
    """Resources of the network between nodes, for each pod of more than one: `{vpc.amazonaws.com/efa: 32}`."""
    fabric_environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of that network: `{FI_PROVIDER: efa}`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every pod, FT_STORE above all."""
    service_account: str = "ft-trainer"
    priority_class: str | None = "ft-train-batch"
    queue: Queue | None = None
    cpu_per_process: int = 11
    memory_gib_per_process: int = 110
    """A node of 8 GPUs has about 96 cores and 1 TiB; this leaves an eighth for the system."""
    memory_gib_without_gpu: int = 4
    """Of a process of a placement on CPUs; its cores are the placement's threads."""
    shm_gib_per_process: int = 8
    tmp_gib: int = 20
    cache_gib: int = 1024
    """The node's fast disk: models, shards, checkpoints on their way to the store."""
    deadline_seconds: int = 172800
    """Of one Job, from its first pod on."""
    keep_seconds: int = 86400
    """How long an ended Job stays to be looked at."""
    pod_annotations: Mapping[str, str] = field(default_factory=lambda: STAYS)
    python: str = "python"
    """The interpreter in the image; a full path on a node that runs containers as processes."""

    def __post_init__(self) -> None:
        if self.grace_seconds <= self.shutdown_seconds:
            raise RecipeError(
                f"profile {self.name}: grace_seconds {self.grace_seconds} must be more than shutdown_seconds {self.shutdown_seconds}",
                why="The pod would be killed while the trainer saves.",
                cure=f"set shutdown_seconds to {max(1, self.grace_seconds * 5 // 6)}",
            )


BARE = Profile(name="bare")
"""NVIDIA's device plugin and its labels, no spot nodes."""

PROFILES: Mapping[str, Profile] = MappingProxyType({"bare": BARE})
"""By name, as FT_CLUSTER says it."""
