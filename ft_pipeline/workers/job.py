"""A job: one module to run with one job.json; and a Placement: where, with how much, how often it saves. Never hashed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ft_pipeline.errors import RecipeError, did_you_mean
from ft_pipeline.recipe import STRICT
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.gpus import PRODUCTS

Sharding = Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3"]
"""`none`, `ddp`: a replica in every process. `fsdp`: weights, gradients and Adam states split (FSDP2). `zero1..3`: DeepSpeed."""

Offload = Literal["none", "optimizer", "parameters"]
"""Of ZeRO, what lives in host memory: Adam states and float32 weights, which are then updated there; `parameters` (zero3): weights too."""

Checkpointing = Literal["none", "selective", "full", "offload"]
"""`full`: each layer again, a third more arithmetic. `selective`: all but products of matrices and attention, which are kept.

`offload`: nothing again, what the layers keep for the backward pass waits in host memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where and how a job runs. No field changes the weights.

    On one kind of device, at one thread count and with the same `processes` and `sharding`: bit for bit. Another number of
    processes or way of sharing adds the same numbers in another order (measured: test_ranks.py); a run may change it when it resumes.
    """

    __pydantic_config__ = STRICT
    worker: Literal["local", "kubernetes"] = "local"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 2
    checkpoint_steps: int = 500
    checkpoint_minutes: float = 10
    keep_checkpoints: int = 2
    """The newest so many, two at least."""
    keep_best: bool = False
    """Saves at each new lowest validation loss too, and keeps that checkpoint after the run."""
    keep_every: int = 0
    """Keeps the checkpoints of every so many steps after the run; 0 for none."""
    keep_rollout_steps: int = 1000
    """Of a policy: completions of the newest so many steps are kept and published; 0 for none."""
    grace_seconds: float = 110
    """Between SIGTERM and SIGKILL when a run is cancelled."""
    processes: int = 1
    """That train together on a machine, one for each GPU. All of a run must divide the micro-batches of a step."""
    nodes: int = 1
    """Machines that train together. More than one: Kubernetes only."""
    gpu: str | None = None
    """Kind of GPU on Kubernetes: a name of workers/gpus.py. None: any, or none for device cpu."""
    spot: bool = False
    """On Kubernetes: nodes that may be taken away, at a third of the price. Weights do not change, only time."""
    on_demand_after_minutes: float = 15
    """With spot: after so long without a node the Job is put on nodes that stay; the next attempt begins on spot again."""
    most_attempts: int = 50
    """On Kubernetes: how many times pods may be replaced before the run is given up."""
    sharding: Sharding = "none"
    """What several processes do with the weights: see Sharding."""
    checkpointing: Checkpointing = "none"
    """Of activations: what the backward pass computes again, so that it need not be kept."""
    offload: Offload = "none"
    """With zero1 to zero3: see Offload."""
    compile: bool = False
    """Each layer by torch.compile, which needs a C++ compiler on a CPU. Fused sums round in another order: within 1e-5 of a loss."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise RecipeError(f"placement.processes {self.processes} must be at least 1")
        _refuse_nowhere(self)

    @property
    def world(self) -> int:
        """Processes of the whole run."""
        return self.processes * self.nodes


def _refuse_nowhere(placement: Placement) -> None:
    """Raises RecipeError for a placement that is in no cluster."""
    if placement.gpu is not None and placement.gpu not in PRODUCTS:
        raise RecipeError(f"placement.gpu {placement.gpu!r} is not known: {did_you_mean(placement.gpu, PRODUCTS)}")
    if placement.gpu is not None and placement.device != "cuda":
        raise RecipeError(f"placement.gpu {placement.gpu} with device {placement.device}", cure="set device: cuda")
    if placement.nodes < 1 or placement.most_attempts < 1:
        raise RecipeError(
            f"placement.nodes {placement.nodes} and most_attempts {placement.most_attempts} must be at least 1"
        )
    asked = [name for name in ("gpu", "spot") if getattr(placement, name)] + ["nodes"] * (placement.nodes > 1)
    if placement.worker == "local" and asked:
        raise RecipeError(
            f"placement.{asked[0]} is set and worker is local",
            why="This machine has the devices it has.",
            cure="set worker: kubernetes",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """`python -m module job.json`. The child computes `spec` and publishes it into the store."""

    name: str
    """For people and process lists: `finetune demo/docs-router`."""
    module: str
    spec: Spec
    section: Mapping[str, Any]
    """The recipe's section, resolved."""
    folder: Path
    """The run's folder: job.json, messages.jsonl, log.txt, checkpoints. One process at a time (a lock file)."""
    placement: Placement
    facts: Mapping[str, Any]
    """What is not hashed but needed, for example tenant, recipe, run id."""
    environment: Literal["ours", "export"] = "ours"
    """`export`: with the interpreter of FT_EXPORT_PYTHON, in pods the image of FT_EXPORT_IMAGE, because its libraries clash with ours."""

    def write(self) -> Path:
        """Writes job.json and returns its path."""
        from ft_pipeline.store.files import write_atomic

        path = self.folder / "job.json"
        write_atomic(path, self.to_json().encode())
        return path

    def to_json(self) -> str:
        """The text of job.json."""
        return json.dumps({**asdict(self), "folder": str(self.folder)}, indent=1)


def read_job(path: Path) -> Job:
    """The job in a job.json."""
    body = json.loads(path.read_text(encoding="utf-8"))
    spec = body["spec"]
    parents = {role: Ref(**ref) for role, ref in spec["parents"].items()}
    return Job(
        name=body["name"],
        module=body["module"],
        spec=Spec(kind=spec["kind"], config=spec["config"], parents=parents, code=spec["code"]),
        section=body["section"],
        folder=Path(body["folder"]),
        placement=Placement(**body["placement"]),
        facts=body["facts"],
        environment=body.get("environment", "ours"),
    )
