"""Attention without a mask is exact inside each row of a packed batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.attention import attend, fits, plan_segments

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
    plan = plan_segments(lengths)
    assert plan.gather[plan.place].tolist() == list(range(sum(lengths)))
    assert len(plan.gather) == sum(rows * width for rows, width in plan.stacks) <= sum(lengths) / 0.75 + 1e-9
    assert sum(rows for rows, _ in plan.stacks) == len(lengths)


def test_a_model_that_swallows_the_boundaries_is_refused():
    with pytest.raises(TrainingFailed, match="does not hand row boundaries"):
        attend(torch.nn.Linear(1, 1), *[torch.zeros(1, 1, 4, 8)] * 3, None)


def test_models_with_windows_or_caps_take_the_masked_road():
    from transformers import Gemma2Config, LlamaConfig, MistralConfig

    assert fits(LlamaConfig())
    assert not fits(MistralConfig(sliding_window=16))
    assert not fits(Gemma2Config())
