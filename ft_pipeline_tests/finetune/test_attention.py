"""Attention without a mask is exact inside each row of a packed batch."""

from __future__ import annotations

import importlib
import inspect
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.attention import attend, by_varlen, fits, plan_segments, varlen_kernel

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(LENGTHS, st.sampled_from([(4, 4), (4, 2)]), st.integers(0, 100))
@settings(max_examples=40)
def test_each_row_attends_as_if_it_were_alone(lengths, heads, seed):
    torch.manual_seed(seed)
    query, key, value = (torch.randn(1, h, sum(lengths), 8) for h in (heads[0], heads[1], heads[1]))
    packed, _ = attend(None, query, key, value, None, segments=plan_segments(lengths), scaling=0.3)
    start = 0
    for length in lengths:
        row = [t[:, :, start : start + length] for t in (query, key, value)]
        alone = scaled_dot_product_attention(*row, is_causal=True, scale=0.3, enable_gqa=heads[0] != heads[1])
        assert torch.allclose(packed[:, start : start + length], alone.transpose(1, 2), atol=1e-6)
        start += length


@given(LENGTHS, st.integers(0, 100))
@settings(max_examples=25)
def test_gradients_are_those_of_the_rows_alone(lengths, seed):
    torch.manual_seed(seed)
    packed = [torch.randn(1, 2, sum(lengths), 4, requires_grad=True) for _ in range(3)]
    weight = torch.randn(1, sum(lengths), 2, 4)
    (attend(None, *packed, None, segments=plan_segments(lengths))[0] * weight).sum().backward()
    for parts in zip(*[t.detach().split(lengths, 2) for t in packed], *[t.grad.split(lengths, 2) for t in packed],
                     weight.split(lengths, 1), strict=True):  # fmt: skip
        alone = [part.clone().requires_grad_() for part in parts[:3]]
        (scaled_dot_product_attention(*alone, is_causal=True).transpose(1, 2) * parts[6]).sum().backward()
        assert all(torch.allclose(a.grad, g, atol=1e-5) for a, g in zip(alone, parts[3:6], strict=True))


@given(LENGTHS)
@settings(max_examples=40)
def test_stacks_hold_every_token_once_with_little_padding(lengths):
    plan = plan_segments(lengths).stacks
    assert plan.gather[plan.place].tolist() == list(range(sum(lengths)))
    assert len(plan.gather) == sum(rows * width for rows, width in plan.shapes) <= sum(lengths) / 0.75 + 1e-9
    assert sum(rows for rows, _ in plan.shapes) == len(lengths)


def varlen_on_cpu(query, key, value, *places, scale, window_size, enable_gqa):
    """What torch.nn.attention.varlen.varlen_attn does with these arguments, row by row; itself it runs on CUDA only."""
    starts, again, longest, longest_again = places
    assert starts.dtype == again.dtype == torch.int32 and torch.equal(starts, again) and longest == longest_again
    edges = starts.tolist()
    assert window_size == (-1, 0) and edges[0] == 0 and edges[-1] == len(query) == len(key) == len(value)
    made = []
    for start, end in itertools.pairwise(edges):
        assert 0 < end - start <= longest
        row = [t[start:end].transpose(0, 1)[None] for t in (query, key, value)]
        attended = scaled_dot_product_attention(*row, is_causal=True, scale=scale, enable_gqa=enable_gqa)
        made.append(attended[0].transpose(0, 1))
    return torch.cat(made)


@given(LENGTHS, st.sampled_from([(4, 4), (4, 2)]), st.integers(0, 100))
@settings(max_examples=25)
def test_the_kernel_of_cuda_gets_what_gives_the_same_attention(lengths, heads, seed):
    torch.manual_seed(seed)
    tensors = [torch.randn(1, h, sum(lengths), 8) for h in (heads[0], heads[1], heads[1])]
    segments = plan_segments(lengths)
    stacked, _ = attend(None, *tensors, None, segments=segments, scaling=0.3)
    assert torch.allclose(stacked, by_varlen(tensors, segments, scale=0.3, kernel=varlen_on_cpu), atol=1e-6)


PAIRS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)
"""(common tokens, further ones of the first row, of the second)."""


def sharing(pairs):
    """Lengths of the whole rows, and the flat token at each of their places."""
    lengths, origin, begin = [], [], 0
    for common, first, second in pairs:
        lengths += [common + first, common + second]
        origin += [*range(common + first), *range(common), *range(common + first, common + first + second)]
        origin[-sum(lengths[-2:]) :] = [begin + o for o in origin[-sum(lengths[-2:]) :]]
        begin += common + first + second
    return lengths, np.array(origin), begin


@given(PAIRS, st.sampled_from(["stacks", "kernel"]), st.integers(0, 100))
@settings(max_examples=40)
def test_a_shared_beginning_attends_and_learns_as_two(pairs, form, seed):
    torch.manual_seed(seed)
    lengths, origin, tokens = sharing(pairs)
    segments, apart = plan_segments(lengths, origin=origin), plan_segments(lengths)
    tensors = [torch.randn(1, 2, tokens, 4, requires_grad=True) for _ in range(3)]
    doubled = [t.detach()[:, :, origin].requires_grad_() for t in tensors]
    weight = torch.randn(1, len(origin), 2, 4)
    if form == "kernel":
        found = by_varlen(tensors, segments, scale=None, kernel=varlen_on_cpu)
    else:
        found = attend(None, *tensors, None, segments=segments)[0]
    wanted = attend(None, *doubled, None, segments=apart)[0]
    assert torch.allclose(found[:, origin], wanted, atol=1e-6)
    (found[:, origin] * weight).sum().backward()
    (wanted * weight).sum().backward()
    for one, two in zip(tensors, doubled, strict=True):
        summed = torch.zeros_like(one).index_add(2, torch.from_numpy(origin), two.grad)
        assert torch.allclose(one.grad, summed, atol=1e-4)


def test_the_arguments_are_those_of_the_installed_torch():
    signature = inspect.signature(importlib.import_module("torch.nn.attention.varlen").varlen_attn)
    bound = signature.bind(*"qkvss", 128, 128, scale=None, window_size=(-1, 0), enable_gqa=True)
    assert list(bound.arguments) == [
        "query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size", "enable_gqa",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cuda", "dtype", "dropout", "capability", "runs"),
    [
        (True, torch.bfloat16, 0.0, (9, 0), True), (True, torch.float16, 0.0, (8, 0), True), (True, torch.float32, 0.0, (9, 0), False),
        (True, torch.bfloat16, 0.1, (9, 0), False), (True, torch.bfloat16, 0.0, (7, 5), False), (False, torch.bfloat16, 0.0, (9, 0), False),
    ],
)  # fmt: skip
def test_the_kernel_is_asked_only_where_it_runs(monkeypatch, cuda, dtype, dropout, capability, runs):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    query = SimpleNamespace(is_cuda=cuda, dtype=dtype, device="cuda:0")
    assert (varlen_kernel(query, dropout) is not None) == runs


def test_the_longest_row_is_told_in_few_values():
    told = {plan_segments([length, 1]).longest for length in range(1, 4097)}
    assert told == {128, 256, 512, 1024, 2048, 4096}


def test_a_model_that_swallows_the_boundaries_is_refused():
    with pytest.raises(TrainingFailed, match="does not hand row boundaries"):
        attend(torch.nn.Linear(1, 1), *[torch.zeros(1, 1, 4, 8)] * 3, None)


def test_models_with_windows_or_caps_take_the_masked_road():
    from transformers import Gemma2Config, LlamaConfig, MistralConfig

    assert fits(LlamaConfig())
    assert not fits(MistralConfig(sliding_window=16))
    assert not fits(Gemma2Config())
