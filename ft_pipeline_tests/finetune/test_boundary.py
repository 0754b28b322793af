"""The boundary check passes on models that keep rows apart, by both roads and every attention, and refuses those that do not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
)

from ft_pipeline.encode.artifact import Window, read_windows
from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.batches import single_rows
from ft_pipeline.finetune.boundary import certificate, check_boundaries
from ft_pipeline.finetune.certificate import told
from ft_pipeline.finetune.model import Trainee, load_trainee
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny

SIZES = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "mistral-sliding": MistralConfig(**SIZES, sliding_window=16, attention_dropout=0.3),
    "gemma2": Gemma2Config(**SIZES, head_dim=16, sliding_window=16),
}


@pytest.fixture(scope="module")
def windows(road) -> list[Window]:
    return list(read_windows(road.shards, "train"))


def random_model(name: str, attention: str) -> Trainee:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    return Trainee(model, tiny.recipe().finetune, "cpu", False)


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), Lora(rank=4, alpha=8, dropout=0.1), None])
def test_rows_of_a_window_do_not_see_each_other(road, windows, lora):
    trainee = load_trainee(road.base.folder, tiny.recipe(lora=lora).finetune)
    trainee.model.train()
    found = check_boundaries(trainee, windows)
    assert found["checked"] and found["passed"] and found["leak_seen"] and found["rows"] > found["windows"] > 1
    assert (found["model"], found["attention"], found["road"]) == ("LlamaForCausalLM", "ft_segments", "flat")
    assert found["modes"] == ["eval", "train"]
    drops = {m.p for m in trainee.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert trainee.model.training and drops <= {lora.dropout if lora else 0.0}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_attention_of_every_model_is_certified_with_an_all_ones_mask_that_differs(windows, name, attention):
    trainee = random_model(name, attention)
    found = certificate(trainee, windows)
    assert found.passed and (found.attention, found.road) == (attention, "padded")
    assert found.controls == {"one_row": True, "all_ones_mask": True}
    assert found.measured["packed"] < 1e-6 and found.measured["all_ones_mask"] > 1e-4
    assert not trainee.model.training or trainee.model.config.attention_dropout in (0.0, 0.3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("leak", ["mask", "cache", "positions"])
def test_a_model_call_that_leaks_fails(windows, name, attention, leak):
    trainee = random_model(name, attention)

    def leaking(_module, arguments, options):
        if leak == "mask":
            options["attention_mask"] = torch.ones_like(options["input_ids"])
        elif leak == "cache":
            options["use_cache"] = True
        else:
            options["position_ids"] = torch.arange(options["input_ids"].shape[1])[None]
        return arguments, options

    trainee.model.register_forward_pre_hook(leaking, with_kwargs=True)
    found = certificate(trainee, windows)
    assert (found.passed, found.fault) == (False, "packed_rows_differ") and found.measured["packed"] > 1e-4
    with pytest.raises(TrainingFailed, match="packed rows see each other"):
        check_boundaries(trainee, windows)


def test_a_leak_in_train_mode_alone_fails(windows):
    trainee = random_model("llama", "sdpa")

    def leaking(module, arguments, options):
        if module.training:
            options["attention_mask"] = torch.ones_like(options["input_ids"])
        return arguments, options

    trainee.model.register_forward_pre_hook(leaking, with_kwargs=True)
    assert certificate(trainee, windows).fault == "packed_rows_differ"


def test_a_certificate_is_small_json_and_the_same_on_every_run(windows):
    facts = [certificate(random_model("llama", "sdpa"), windows).facts() for _ in range(2)]
    assert facts[0] == facts[1] == json.loads(json.dumps(facts[0])) and len(json.dumps(facts[0])) < 500
    assert "measured" not in facts[0]
    assert told(facts[0]).startswith("packed rows have the loss that they have alone")


def test_a_sliding_window_model_takes_the_masked_road_and_passes(road, windows, tmp_path):
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, sliding_window=64)
    config.save_pretrained(tmp_path)
    save_file(MistralForCausalLM(config).state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    trainee = load_trainee(tmp_path, tiny.recipe().finetune)
    found = check_boundaries(trainee, windows)
    assert not trainee.flat and found["checked"] and found["leak_seen"]


def test_a_flat_model_that_leaks_is_refused(road, windows):
    trainee = load_trainee(road.base.folder, tiny.recipe().finetune)

    def forgetful(module, arguments, options):
        from ft_pipeline.finetune.attention import plan_segments

        options["segments"] = plan_segments([options["input_ids"].shape[1]])
        return arguments, options

    trainee.model.register_forward_pre_hook(forgetful, with_kwargs=True)
    with pytest.raises(TrainingFailed, match="packed rows see each other"):
        check_boundaries(trainee, windows)


def test_a_model_of_zeros_cannot_be_checked_and_is_refused(road, windows):
    trainee = load_trainee(road.base.folder, tiny.recipe().finetune)
    with torch.no_grad():
        for parameter in trainee.model.parameters():
            parameter.zero_()
    assert certificate(trainee, windows).fault == "control_is_blind"
    with pytest.raises(TrainingFailed, match="blind"):
        check_boundaries(trainee, windows)


def test_a_model_of_nan_proves_nothing(road, windows):
    trainee = load_trainee(road.base.folder, tiny.recipe().finetune)
    with torch.no_grad():
        next(iter(trainee.model.parameters())).fill_(float("nan"))
    assert certificate(trainee, windows).fault == "packed_rows_differ"


def test_windows_of_one_row_need_no_check(road, windows):
    alone = [row for w in windows for row in single_rows(w)]
    found = check_boundaries(load_trainee(road.base.folder, tiny.recipe().finetune), alone)
    assert found["checked"] is False and "nothing can leak" in told(found)
