"""The boundary check passes on models that keep rows apart, by both roads, and refuses one that does not."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import MistralConfig, MistralForCausalLM

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.batches import single_rows
from ft_pipeline.finetune.boundary import check_boundaries
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny


@pytest.fixture(scope="module")
def windows(road):
    return list(read_windows(road.shards, "train"))


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), Lora(rank=4, alpha=8, dropout=0.1), None])
def test_rows_of_a_window_do_not_see_each_other(road, windows, lora):
    found = check_boundaries(load_trainee(road.base.folder, tiny.recipe(lora=lora).finetune), windows)
    assert found["checked"] and found["leak_seen"] and found["rows"] > 1
    assert found["modes"] == (["eval"] if lora and lora.dropout else ["eval", "train"])


def test_a_sliding_window_model_takes_the_masked_road_and_passes(road, windows, tmp_path):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=64, max_position_embeddings=512,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    save_file(MistralForCausalLM(config).state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    trainee = load_trainee(tmp_path, tiny.recipe().finetune)
    found = check_boundaries(trainee, windows)
    assert not trainee.flat and found["checked"] and found["leak_seen"]


def test_a_model_that_leaks_is_refused(road, windows):
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
    with pytest.raises(TrainingFailed, match="blind"):
        check_boundaries(trainee, windows)


def test_windows_of_one_row_need_no_check(road, windows):
    alone = [row for w in windows for row in single_rows(w)]
    assert check_boundaries(load_trainee(road.base.folder, tiny.recipe().finetune), alone)["checked"] is False
