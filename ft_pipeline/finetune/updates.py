"""What moves the weights in a step: AdamW over gradients that all processes have summed, or DeepSpeed's ZeRO around it (zero.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from ft_pipeline.finetune import sharding
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.zero import STAGES, zero

if TYPE_CHECKING:
    from ft_pipeline.finetune.parallel import World

BUCKET_ELEMENTS = 8 << 20
"""Gradients travel in pieces of 32 MiB in float32: large enough that latency does not count, small enough that they overlap."""


class Updates(Protocol):
    """The optimizer of a run with its gradients. Every process of a run calls every method, in the same order."""

    def backward(self, part: torch.Tensor, *, last: bool) -> None:
        """The backward pass of one micro-batch, whether it is the step's last one here or not."""
        ...

    def norm(self) -> torch.Tensor:
        """After the last one: the norm of the whole gradient, of all processes. Not finite when a value of it is not."""
        ...

    def step(self, norm: torch.Tensor, rate: float) -> None:
        """Clips the gradient, which has this norm, moves the weights and forgets the gradient."""
        ...

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Before a step: (name of a parameter, its gradient, or a slice that is known as one)."""
        ...

    def state(self, *, keep: bool) -> dict[str, Any]:
        """The optimizer's state with whole tensors, as one process would save it. `keep` False: takes part and keeps nothing."""
        ...

    def load(self, saved: Mapping[str, Any]) -> None:
        """Goes on from a saved state; the saved weights are in the model already."""
        ...


def updates_of(trainee: Trainee, world: World) -> Updates:
    """For a model that the world has spread."""
    optimizer = _adamw(trainee)
    if world.sharding not in STAGES or world.size == 1:
        return Plain(trainee=trainee, world=world, optimizer=optimizer, parameters=trainee.trained)
    most = trainee.section.max_grad_norm
    return zero(trainee.model, optimizer, sharding=world.sharding, offload=world.offload, max_norm=most)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """One process, replicas or FSDP2."""

    trainee: Trainee
    world: World
    optimizer: torch.optim.Optimizer
    parameters: list[torch.nn.Parameter]
    """Looked up once (a tenth of a tiny step each time)."""

    def backward(self, part: torch.Tensor, *, last: bool) -> None:
        """Shards exchange an adapter's gradients in the step's last backward pass only; those of all weights, whole, would not fit: in each."""
        if self.world.sharded:
            self.trainee.model.set_requires_gradient_sync(last or self.trainee.section.lora is None)
        part.backward()

    def norm(self) -> torch.Tensor:
        """Replicas sum their gradients first."""
        if self.world.size > 1 and not self.world.sharded:
            _reduce(self.parameters)
        # clipped only once it is known to be finite: NaN would spread to every gradient, and the diagnosis tells them apart
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, norm: torch.Tensor, rate: float) -> None:
        """AdamW's."""
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.trainee.section.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Of every parameter that has one."""
        for name, parameter in self.trainee.model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad

    def state(self, *, keep: bool) -> dict[str, Any]:
        """Of FSDP2, gathered."""
        return sharding.whole_optimizer(self.optimizer, keep=keep)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Of FSDP2, cut as the parameters are."""
        sharding.load_optimizer(self.optimizer, saved)


def _adamw(trainee: Trainee) -> torch.optim.AdamW:
    section = trainee.section
    matrices = [p for p in trainee.trained if p.ndim > 1]
    others = [p for p in trainee.trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=section.learning_rate, fused=True)


def _reduce(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Makes each gradient the sum over all replicas."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flying = []
    for bucket in _buckets(gradients):
        flat = torch.cat([g.reshape(-1) for g in bucket])
        flying.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in flying:
        work.wait()
        parts = flat.split([g.numel() for g in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one type, together up to the size of a bucket: the same in every process."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_ELEMENTS
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
