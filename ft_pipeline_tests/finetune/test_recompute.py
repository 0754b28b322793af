"""Activation checkpointing: the same bits, and fewer bytes kept for the backward pass."""

from __future__ import annotations

import pytest
import torch

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.finetune.batches import batch_of
from ft_pipeline.finetune.loop import make_deterministic
from ft_pipeline.finetune.methods.causal import loss_sum
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.parallel import World
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny


def step(road, how: str, lora) -> tuple[list[torch.Tensor], int]:
    """The gradients of one micro-batch and how many bytes its backward pass needed."""
    make_deterministic(1)
    trainee = load_trainee(road.base.folder, tiny.recipe(lora=lora).finetune)
    World(checkpointing=how).spread(trainee)
    trainee.model.train()
    sizes: dict[int, int] = {}

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        loss = loss_sum(trainee.model, batch_of(list(read_windows(road.shards, "train"))[:4], flat=trainee.flat))
    loss.backward()
    return [p.grad for p in trainee.trained if p.grad is not None], sum(sizes.values())


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8, dropout=0.2), None])
def test_gradients_are_the_same_bits_and_less_is_kept(road, lora):
    plain, all_bytes = step(road, "none", lora)
    full, least_bytes = step(road, "full", lora)
    selective, _ = step(road, "selective", lora)
    assert len(plain) == len(full) == len(selective) > 0
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, full, selective, strict=True))
    print("bytes kept:", all_bytes, least_bytes)
    assert least_bytes < all_bytes / 2
