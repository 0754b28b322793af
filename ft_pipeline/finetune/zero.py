"""DeepSpeed's ZeRO: Adam states, gradients (2) and weights (3) are split; checkpoints hold whole tensors, as every other way writes them.

DeepSpeed is driven directly, without its launcher, config files or checkpoints: it takes the loop's model and AdamW. Weights stay in
float32 under autocast where the recipe says bfloat16, as in one process, so that only the order of additions differs.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ft_pipeline.errors import RecipeError
from ft_pipeline.workers.job import Offload, Sharding

STAGES: Mapping[Sharding, int] = {"zero1": 1, "zero2": 2, "zero3": 3}
BUCKET_ELEMENTS = 32 << 20
"""Gradients that DeepSpeed reduces at once; it holds a buffer of so many from the start (its default: 2 GB)."""
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Zero:
    """An AdamW whose states (and more) are split. Every process calls every method, in the same order."""

    engine: Any
    parameters: list[torch.nn.Parameter]
    """The trained ones in the order of the optimizer that one process would have."""
    groups: list[dict[str, Any]]
    """Its param_groups, as state_dict writes them."""
    size: int

    @property
    def inner(self) -> Any:
        """DeepSpeed's optimizer, around torch's."""
        return self.engine.optimizer

    @property
    def splits_weights(self) -> bool:
        """Stage 3."""
        return self.engine.zero_optimization_partition_weights()

    def backward(self, part: torch.Tensor, *, last: bool) -> None:
        """One backward pass. DeepSpeed takes the mean over processes, the loop wants the sum."""
        from deepspeed.runtime.utils import register_output_backward_hooks

        self.engine.set_gradient_accumulation_boundary(last)
        self.inner.clear_backward_seen_flag()
        total = part * self.size
        # what engine.forward does to its output: the methods call the model itself
        register_output_backward_hooks(total, preprocess_once_fn=self.engine._backward_prologue)
        self.engine.backward(total, scale_wrt_gas=False)

    def norm(self) -> torch.Tensor:
        """Of the whole gradient; not finite when one of its values is not."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        if self.splits_weights:
            return combine_grad_norm_groups(self.inner._get_norm_groups())
        return self.inner.scaled_global_norm()

    def step(self, norm: torch.Tensor, rate: float) -> None:  # noqa: ARG002 - DeepSpeed keeps its own
        """Clips to the recipe's max_grad_norm and moves the weights."""
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.engine.step()

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole, one at a time. Not safe_get_full_grad: it asks each process whether it has the gradient still, and may then wait for ever."""
        for name, parameter in self.engine.module.named_parameters():
            if parameter.requires_grad:
                whole = (
                    self.inner.get_fp32_grad_for_param(parameter)
                    if self.splits_weights
                    else parameter.get_full_hp_grad()
                )
                yield name, whole

    def state(self, *, keep: bool) -> dict[str, Any]:
        """The optimizer's state with whole tensors, as one process would save it. `keep` False: takes part and keeps nothing."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = next(iter(self.inner.optimizer.state.values()))["step"]
        made = {}
        for number, parameter in enumerate(self.parameters):
            moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            if keep:
                made[number] = {"step": steps.clone(), **moments}
        return {"state": made, "param_groups": self.groups}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Puts a saved state of whole tensors back, and takes the weights as they are now in the model for those to go on from."""
        self.inner.refresh_fp32_params()
        for entry in self.inner.optimizer.state.values():
            entry["step"].copy_(saved["state"][0]["step"])
        for number, parameter in enumerate(self.parameters):
            for name in MOMENTS:
                self._put(parameter, saved["state"][number][name], name)

    def _begin(self) -> Zero:
        """Moments of zeros, as AdamW makes them at its first step: DeepSpeed links those of the first group only when it makes them."""
        plain = self.inner.optimizer
        parts = "fp32_partitioned_groups_flat" if self.splits_weights else "single_partition_of_fp32_groups"
        for flat in getattr(self.inner, parts):
            plain.state[flat] = {"step": torch.zeros(()), **{name: torch.zeros_like(flat) for name in MOMENTS}}
        if not self.splits_weights:
            self.inner._lazy_init_hp_params_optimizer_state()
        return self

    def _put(self, parameter: torch.nn.Parameter, tensor: torch.Tensor, name: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not self.splits_weights:
            safe_set_full_optimizer_state(parameter, tensor, name)
            return
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        flat = torch.nn.functional.pad(tensor.flatten(), (0, length * self.size - tensor.numel()))
        rank = torch.distributed.get_rank()
        safe_set_local_optimizer_state(parameter, flat.narrow(0, length * rank, length), name)


def zero(
    model: Any, optimizer: torch.optim.Optimizer, *, sharding: Sharding, offload: Offload, max_norm: float
) -> Zero:
    """DeepSpeed's engine around a model and its AdamW. Raises RecipeError where deepspeed is not installed."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    deepspeed = _deepspeed()
    size = torch.distributed.get_world_size()
    config = _config(STAGES[sharding], offload, sum(p.numel() for p in parameters))
    config |= {"gradient_clipping": max_norm, "train_batch_size": size}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=None)
    return Zero(engine=engine, parameters=parameters, groups=groups, size=size)._begin()


def is_split(tensor: torch.Tensor) -> bool:
    """True for a parameter of stage 3: it is empty but for the moment in which its layer runs."""
    return hasattr(tensor, "ds_id")


def whole_of(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter of stage 3: a collective."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def put(parameters: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Makes whole tensors the values of parameters of stage 3; all processes have the same ones."""
    import deepspeed

    for name, tensor in tensors.items():
        with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0), torch.no_grad():
            parameters[name].copy_(tensor)


def left(updates: Any) -> None:
    """Before the group of the processes ends: DeepSpeed forgets its own, so that this process may join another run."""
    if isinstance(updates, Zero):
        from deepspeed.utils import groups

        updates.engine.destroy()
        groups._release_process_group_references(group=None)


def _config(stage: int, offload: Offload, elements: int) -> dict[str, Any]:
    """Of DeepSpeed. Every parameter is split in stage 3, as FSDP2 splits it: no threshold below which it is kept whole."""
    bucket = min(BUCKET_ELEMENTS, elements)
    found: dict[str, Any] = {
        "stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "overlap_comm": False,
        "contiguous_gradients": True, "round_robin_gradients": False,
    }  # fmt: skip
    if stage == 3:
        found |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": bucket}
    if offload != "none":
        found["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload == "parameters":
        found["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "steps_per_print": sys.maxsize,
        # torch's AdamW: DeepSpeed's own for the CPU is a C++ extension that is built at first use
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "zero_optimization": found,
    }  # fmt: skip


def _deepspeed() -> Any:
    """The library, also where it was hidden (workers/startup.py), quiet, and without the C++ extension for shared memory."""
    if sys.modules.get("deepspeed", sys) is None:
        del sys.modules["deepspeed"]
    try:
        import deepspeed
    except ImportError as missing:
        raise RecipeError(
            f"placement.sharding needs the package deepspeed: {missing}",
            why="It is an extra: most runs do without.",
            cure="pip install ft-pipeline[deepspeed], or sharding: fsdp",
        ) from missing
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # deepspeed 0.19.8 on torch 2.13: two lines for each collective
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # built at first use, in minutes; gloo does the same work
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
