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


def queue_of(text: str) -> Queue:
    """The queue of `name` or `name:priority-class`."""
    name, _, priority = text.partition(":")
    return Queue(name=name, priority=priority or None)


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
    fabric_by_gpu: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The same where it depends on the machine: name of a GPU -> resources of a node of 8 GPUs, shared among them, instead of `fabric`."""
    fabric_environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of that network: `{FI_PROVIDER: efa}`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every pod, FT_STORE above all."""
    credentials: str | None = "ft-store-credentials"
    """Secret whose keys become variables of every pod (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY); it may be absent. None where pods get
    their keys from the cloud."""
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

    def fabric_of(self, gpu: str | None, processes: int) -> Mapping[str, int]:
        """What a pod of several, with so many GPUs, asks of the network between nodes."""
        whole = self.fabric_by_gpu.get(gpu or "")
        return self.fabric if whole is None else {name: max(1, n * processes // 8) for name, n in whole.items()}


BARE = Profile(name="bare")
"""NVIDIA's device plugin and its labels, no spot nodes."""

KARPENTER = Profile(
    name="eks-karpenter",
    gpu_label="node.kubernetes.io/instance-type",
    gpu_values=MappingProxyType(
        {
            "a100-40gb": ("p4d.24xlarge",),
            "a100-80gb": ("p4de.24xlarge",),
            "h100-80gb": ("p5.48xlarge", "p5.4xlarge"),
            "h200-141gb": ("p5en.48xlarge", "p5e.48xlarge"),
            "l40s-48gb": ("g6e.48xlarge", "g6e.24xlarge", "g6e.12xlarge", "g6e.2xlarge"),
        }
    ),
    spot_label=("karpenter.sh/capacity-type", "spot"),
    credentials=None,
    fabric_by_gpu=MappingProxyType(
        {
            "a100-40gb": {"vpc.amazonaws.com/efa": 4}, "a100-80gb": {"vpc.amazonaws.com/efa": 4},
            "h100-80gb": {"vpc.amazonaws.com/efa": 32}, "h200-141gb": {"vpc.amazonaws.com/efa": 16},
        }
    ),
    fabric_environment=MappingProxyType({"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}),
)  # fmt: skip
"""Two minutes of notice. Karpenter makes nodes for pods by labels that it knows before a node is there: nvidia.com/gpu.product is not
one of them, so a pod that asks for it waits for ever."""

GKE = Profile(
    name="gke",
    gpu_label="cloud.google.com/gke-accelerator",
    gpu_values=MappingProxyType(
        {
            "a100-40gb": ("nvidia-tesla-a100",),
            "a100-80gb": ("nvidia-a100-80gb",),
            "h100-80gb": ("nvidia-h100-80gb", "nvidia-h100-mega-80gb"),
            "h200-141gb": ("nvidia-h200-141gb",),
        }
    ),
    spot_label=("cloud.google.com/gke-spot", "true"),
    spot_tolerations=(Toleration(key="cloud.google.com/gke-spot", value="true"),),
    grace_seconds=15,
    shutdown_seconds=12,
    cpu_per_process=10,
    memory_gib_per_process=70,
)
"""30 s of notice, of which 15 s are the pods'; node configuration can extend them (then: replace grace_seconds). No L40S. The network
between nodes (GPUDirect) is by annotations of the cluster's network objects: pod_annotations. An a2-highgpu has 12 cores, 79 GiB a GPU."""

AKS = Profile(
    name="aks",
    gpu_label="node.kubernetes.io/instance-type",
    gpu_values=MappingProxyType(
        {
            "a100-40gb": ("Standard_ND96asr_v4",),
            "a100-80gb": ("Standard_ND96amsr_A100_v4", "Standard_NC24ads_A100_v4", "Standard_NC96ads_A100_v4"),
            "h100-80gb": ("Standard_ND96isr_H100_v5",),
            "h200-141gb": ("Standard_ND96isr_H200_v5",),
        }
    ),
    gpu_tolerations=(Toleration(key="nvidia.com/gpu"), Toleration(key="sku", value="gpu")),
    spot_label=("kubernetes.azure.com/scalesetpriority", "spot"),
    spot_tolerations=(Toleration(key="kubernetes.azure.com/scalesetpriority", value="spot"),),
    grace_seconds=25,
    shutdown_seconds=20,
    fabric=MappingProxyType({"rdma/shared_ib": 1}),
    memory_gib_per_process=96,
)
"""At least 30 s of notice. AKS taints spot nodes by itself. No L40S. rdma/shared_ib is what Azure's device plugin for InfiniBand offers."""

PROFILES: Mapping[str, Profile] = MappingProxyType({made.name: made for made in (BARE, KARPENTER, GKE, AKS)})
"""By name, as FT_CLUSTER says it. Labels, grace and network of the clouds are from their documentation, not measured."""
