"""FSDP2: every process holds a slice of each parameter, gradient and Adam state; checkpoints hold whole tensors.

Whole tensors under the names and in the order of a run of one process, so that a run can go on with any number of processes and
with any way of sharing. The price: the leader holds the whole trained state in host memory while it saves (full 8B: 96 GB; LoRA
r32 of it: 1 GB). And each process loads the whole model before it keeps its slice: memory for one copy a process at the start.

In bfloat16 the slices stay as they were loaded (float32 where they are trained); a layer is gathered in bfloat16 and forgotten after use, where
autocast alone would cast, and keep until the backward pass, every weight. What is no layer (embedding, last norm, head) is gathered as
it is: the stream between layers stays in float32, as in one process, and a frequent token's gradient is summed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ft_pipeline.finetune.zero import is_split, whole_of


def shard(model: Any, *, device: str, size: int, dtype: str) -> None:
    """Splits the model in place: each layer, then the rest. `dtype`: in which layers compute; gradients are summed in float32.

    Gradients are summed, not averaged: the loop divides by the weight of the whole step (and gloo has no average).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device, (size,))
    policy = MixedPrecisionPolicy()
    if dtype == "bfloat16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The repeated blocks of a transformers model, inside PEFT's wrapper or not: the classes that it says must stay whole."""
    whole = set(_block_names(model))
    return [module for module in model.modules() if type(module).__name__ in whole]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a slice: a collective, so every process calls it in the same order. Any other tensor as it is."""
    if is_split(tensor):
        return whole_of(tensor)
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def like(slice_: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The slice of a whole tensor that this process holds, cut as another tensor is. No communication."""
    if not hasattr(slice_, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = slice_.device_mesh, slice_.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(mesh.device_type), mesh, placements, src_data_rank=None)


def whole_optimizer(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """The optimizer's state with whole tensors, as one process would save it. `keep` False: takes part and keeps nothing."""
    state = optimizer.state_dict()
    made = {number: _whole_entry(entry, keep=keep) for number, entry in sorted(state["state"].items())}
    return {**state, "state": made}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Puts a saved state of whole tensors back, each cut as its parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: like(parameters[number], t) if t.ndim else t for name, t in entry.items()}
        for number, entry in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _whole_entry(entry: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    made = {}
    for name in sorted(entry):
        tensor = whole(entry[name])
        if keep:
            made[name] = tensor
    return made


def _block_names(model: Any) -> list[str]:
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return sorted(getattr(plain, "_no_split_modules", None) or ())
