"""A job: one module to run with one job.json; and a Placement: where, with how much, how often it saves. Never hashed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ft_pipeline.errors import RecipeError
from ft_pipeline.recipe import STRICT
from ft_pipeline.store.manifest import Ref, Spec

Sharding = Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3"]
"""`none`, `ddp`: a replica in every process. `fsdp`: weights, gradients and Adam states split (FSDP2). `zero1..3`: DeepSpeed."""

Checkpointing = Literal["none", "selective", "full"]
"""`full`: each layer again, a third more arithmetic. `selective`: all but products of matrices and attention, which are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where and how a job runs. No field changes the weights.

    On one kind of device, at one thread count and with the same `processes` and `sharding`: bit for bit. Another number of
    processes or way of sharing adds the same numbers in another order (measured: test_ranks.py); a run may change it when it resumes.
    """

    __pydantic_config__ = STRICT
    worker: Literal["local"] = "local"
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
    """That train together on this machine, one for each GPU. Must divide the micro-batches of a step."""
    sharding: Sharding = "none"
    """What several processes do with the weights: see Sharding."""
    checkpointing: Checkpointing = "none"
    """Of activations: what the backward pass computes again, so that it need not be kept."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise RecipeError(f"placement.processes {self.processes} must be at least 1")


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

    def write(self) -> Path:
        """Writes job.json and returns its path."""
        from ft_pipeline.store.files import write_atomic

        path = self.folder / "job.json"
        write_atomic(path, json.dumps({**asdict(self), "folder": str(self.folder)}, indent=1).encode())
        return path


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
    )
