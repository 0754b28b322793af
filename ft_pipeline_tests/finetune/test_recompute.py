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
from ft_pipeline.finetune.recompute import _back, _to_host
from ft_pipeline.planning.trace import Storages
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny


def step(road, how: str, lora) -> tuple[list[torch.Tensor], int]:
    """The gradients of one micro-batch and how many bytes its forward pass left alive."""
    make_deterministic(1)
    trainee = load_trainee(road.base.folder, tiny.recipe(lora=lora).finetune)
    World(checkpointing=how).spread(trainee)
    trainee.model.train()
    torch.manual_seed(7)
    batch = batch_of(list(read_windows(road.shards, "train"))[:4], flat=trainee.flat)
    with Storages() as counted:  # not saved_tensors_hooks: what `selective` keeps is not saved through them
        loss = loss_sum(trainee.model, batch)
        kept = counted.live
    loss.backward()
    return [p.grad for p in trainee.trained if p.grad is not None], kept


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8, dropout=0.2), None])
def test_gradients_are_the_same_bits_and_less_is_kept(road, lora):
    plain, all_bytes = step(road, "none", lora)
    full, least_bytes = step(road, "full", lora)
    selective, some_bytes = step(road, "selective", lora)
    lent, _ = step(road, "offload", lora)
    assert len(plain) == len(full) == len(selective) == len(lent) > 0
    for other in (full, selective, lent):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    print("bytes kept:", all_bytes, some_bytes, least_bytes)
    assert least_bytes < all_bytes / 2 and least_bytes < some_bytes < all_bytes * 0.65


@pytest.mark.parametrize("strided", [False, True])
def test_what_waits_in_host_memory_comes_back_as_it_was_and_weights_stay(strided):
    tensor = torch.randn(64, 32)
    tensor = tensor.t() if strided else tensor
    lent = _to_host(tensor)
    assert isinstance(lent, tuple) and lent[1].data_ptr() != tensor.data_ptr()
    assert torch.equal(_back(lent), tensor) and _back(lent).stride() == tensor.stride()
    weight = torch.nn.Parameter(torch.randn(64, 32))
    assert _to_host(weight.t()) is not None and not isinstance(_to_host(weight.t()), tuple)
