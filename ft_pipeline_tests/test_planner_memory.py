"""The memory formulas: published counts and bytes, what sharding divides, and a fake-tensor trace of the real model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ft_pipeline.planning.memory import GIB, Layout, memory, states
from ft_pipeline.planning.shapes import PUBLIC, Shape, public_shape, shape_of
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny

LORA, QLORA = Lora(rank=16, alpha=32), Lora(rank=16, alpha=32, quantize="nf4")
FULL = Layout(precision="bfloat16", lora=None)
SMALL = Shape(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, inner=1024, vocabulary=8000)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-2-7B", 6_738_415_616), ("Llama-2-13B", 13_015_864_320), ("Llama-2-70B", 68_976_648_192),
        ("Llama-3.1-8B", 8_030_261_248), ("Llama-3.1-70B", 70_553_706_496), ("Qwen2.5-7B", 7_615_616_512),
        ("Mistral-7B", 7_241_732_096), ("SmolLM2-135M", 134_515_008),
    ],
)  # fmt: skip
def test_public_shapes_have_the_published_counts(name, parameters):
    assert PUBLIC[name].parameters == parameters


@pytest.mark.parametrize(
    ("name", "rank", "targets", "expected"),
    [
        ("Llama-2-7B", 8, "all-linear", 19_988_480), ("Llama-3.1-8B", 16, "all-linear", 41_943_040),
        ("Llama-3.1-70B", 16, "all-linear", 207_093_760), ("Llama-2-7B", 8, ("q_proj", "v_proj"), 4_194_304),
    ],
)  # fmt: skip
def test_lora_has_the_published_counts(name, rank, targets, expected):
    assert PUBLIC[name].lora_parameters(rank, targets) == expected


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"), ("meta-llama/Meta-Llama-3-8B", "Llama-3.1-8B"),
        ("hf://meta-llama/Llama-2-13b-chat-hf", "Llama-2-13B"), ("hf://mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B"),
        ("hf://Qwen/Qwen2.5-7B-Instruct@main", "Qwen2.5-7B"), ("hf://HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M"),
    ],
)  # fmt: skip
def test_variants_of_a_public_model_have_its_shape(uri, name):
    assert public_shape(uri) == (name, PUBLIC[name])


def test_an_unknown_name_has_no_shape():
    assert public_shape("hf://Qwen/Qwen2.5-72B-Instruct") is None


def test_a_config_of_another_form_has_no_shape():
    with pytest.raises(KeyError):
        shape_of({"n_embd": 768})


@pytest.mark.parametrize(
    ("sharding", "each"), [("none", 16.0), ("zero1", 5.5), ("zero2", 3.75), ("zero3", 2.0), ("fsdp", 2.0)]
)
def test_bytes_a_parameter_are_those_of_the_zero_paper(sharding, each):
    shape = PUBLIC["Llama-2-7B"]
    assert sum(states(shape, replace(FULL, sharding=sharding, gpus=8))) / shape.parameters == each


def test_seventy_billion_on_sixteen_gpus_take_seventy_gigabytes_each():
    held = sum(states(PUBLIC["Llama-2-70B"], replace(FULL, sharding="zero3", gpus=16)))
    assert held / 1e9 == pytest.approx(70, rel=0.02)


def test_lora_on_seven_billion_takes_what_was_published_and_four_bits_a_third_less():
    shape, published = (
        PUBLIC["Llama-2-7B"],
        Layout(precision="bfloat16", lora=Lora(rank=8, alpha=16, targets=("q_proj", "v_proj"))),
    )
    needed = memory(shape, published, tokens=1304).peak / 1e9
    assert needed == pytest.approx(21.33, rel=0.05)
    four_bits = memory(shape, replace(published, lora=replace(published.lora, quantize="nf4")), tokens=1304).peak / 1e9
    assert 0.5 < four_bits / needed < 0.7


def test_activations_are_linear_in_tokens_and_checkpointing_keeps_one_stream():
    shape, layout = PUBLIC["Llama-3.1-8B"], Layout(precision="bfloat16", lora=LORA)
    one, two = (memory(shape, layout, tokens=n).activations for n in (2048, 4096))
    assert two == 2 * one
    kept = [
        memory(shape, replace(layout, checkpointing=c), tokens=4096).activations for c in ("none", "selective", "full")
    ]
    assert kept[0] > kept[1] > kept[2] > 4096 * 32 * 4096 * 2


def test_the_peak_is_no_more_than_its_parts():
    for lora in (None, LORA, QLORA):
        for checkpointing in ("none", "selective", "full"):
            for accumulates in (False, True):
                layout = Layout(precision="bfloat16", lora=lora, checkpointing=checkpointing, accumulates=accumulates)
                m = memory(PUBLIC["Mistral-7B"], layout, tokens=4096)
                whole = m.weights + m.gradients + m.optimizer + m.working + m.activations + m.recomputed + m.head
                assert m.weights + m.optimizer < m.peak <= whole + PUBLIC["Mistral-7B"].embedding * 4


def test_plain_logits_cost_what_chunks_save():
    shape, layout = PUBLIC["Llama-3.1-8B"], Layout(precision="bfloat16", lora=LORA)
    chunked, plain = (memory(shape, replace(layout, head=head), tokens=8192).head for head in ("chunked", "plain"))
    assert plain / GIB == pytest.approx(8192 * 128256 * 12 / GIB) and chunked / GIB < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("head", ["chunked", "plain"])
@pytest.mark.parametrize(
    ("precision", "lora"), [("float32", None), ("autocast", None), ("float32", LORA), ("bfloat16", LORA)]
)
def test_formulas_are_within_five_percent_of_a_trace_of_the_real_model(precision, lora, head, checkpointing):
    from ft_pipeline.planning.trace import trace

    layout = Layout(precision=precision, lora=lora, checkpointing=checkpointing, head=head, trained_share=0.5)
    traced = trace(SMALL, layout, windows=4, window_tokens=512)
    planned = memory(SMALL, layout, tokens=2048)
    assert planned.weights + planned.optimizer == pytest.approx(traced.states, rel=0.01)
    assert planned.peak == pytest.approx(traced.peak, rel=0.05)


@pytest.mark.slow
def test_counts_are_those_of_peft_on_a_real_model(tmp_path):
    import json

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny.base_folder(tmp_path / "base")
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == shape.lora_parameters(4)
