"""QLoRA: the base in four bits trains on a CPU as well, its adapter is one for the base as it is, and a resume is exact."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.finetune.adapter import refuse_empty
from ft_pipeline.finetune.artifact import refuse_unsupported
from ft_pipeline.finetune.batches import batch_of
from ft_pipeline.finetune.boundary import check_boundaries
from ft_pipeline.finetune.methods.causal import loss_sum
from ft_pipeline.finetune.model import Trainee, load_trainee, work_of
from ft_pipeline.finetune.quantize import linear4bit
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny

NF4 = Lora(rank=4, alpha=8, quantize="nf4")


@pytest.fixture
def windows(road):
    return list(read_windows(road.shards, "train"))


def trainee(road, lora=NF4, **changes) -> Trainee:
    return load_trainee(road.base.folder, tiny.recipe(lora=lora, **changes).finetune)


def test_every_projection_but_the_head_is_in_four_bits_with_its_scales_quantised_again(road):
    made = trainee(road)
    four = [m for m in made.model.modules() if isinstance(m, linear4bit())]
    assert len(four) == 2 * 7
    for layer in four:
        state = layer.weight.quant_state
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() * 2 == layer.in_features * layer.out_features
        assert state.quant_type == "nf4" and state.nested and state.blocksize == 64 and not layer.weight.requires_grad
    assert made.model.get_output_embeddings().weight.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in made.trained)
    assert work_of(made) == work_of(trainee(road, Lora(rank=4, alpha=8)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_every_adapter_after_a_validation_too(road, windows, dtype):
    """bitsandbytes 0.50.2 repacks its weights in eval mode on AVX512-BF16, and no gradient would pass them again."""
    made, batch = trainee(road, dtype=dtype), batch_of(windows[:4], flat=True)

    def gradients():
        made.model.zero_grad()
        with made.precision():
            loss_sum(made.model, batch).backward()
        # B is zero at first, so A's gradient is too
        found = {n: p.grad.clone() for n, p in made.model.named_parameters() if p.requires_grad and "lora_B" in n}
        assert len(found) == 14 and all(g.abs().max() > 0 for g in found.values())
        return found

    before = gradients()
    made.model.eval()
    with torch.no_grad(), made.precision():
        loss_sum(made.model, batch)
    made.model.train()
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("changes", [{}, {"dora": True}, {"rslora": True}])
def test_packed_rows_keep_apart(road, windows, changes):
    found = check_boundaries(trainee(road, Lora(rank=4, alpha=8, quantize="nf4", **changes)), windows)
    assert found["checked"] and found["passed"]


def test_the_loss_is_near_the_one_of_the_base_as_it_is(road, windows):
    batch = batch_of(windows[:4], flat=True)
    losses = [loss_sum(trainee(road, lora).model, batch).item() for lora in (NF4, Lora(rank=4, alpha=8))]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_recipe_of_nf4_trains_and_its_adapter_loads_on_the_base_as_it_is(road, no_mlflow):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = tiny.recipe(lora=NF4, dtype="bfloat16", epochs=4, seed=11)
    refuse_unsupported(recipe)
    made = tiny.train_here(road.store, recipe, road.shards, road.base)
    refuse_empty(made)
    assert {t.dtype for t in load_file(made.file("adapter_model.safetensors")).values()} == {torch.bfloat16}
    base = AutoModelForCausalLM.from_pretrained(road.base.folder)
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, made.folder)(ids).logits
    assert (adapted - plain).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_is_found_in_a_process_that_started_without_it(road):
    """Children hide what a model never needs (workers/startup.py), bitsandbytes among it."""
    program = f"""
from pathlib import Path
from ft_pipeline.workers.startup import UNUSED_BY_A_MODEL, hide
hide(UNUSED_BY_A_MODEL)
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline_tests import tiny
from ft_pipeline.recipe import Lora
section = tiny.recipe(lora=Lora(rank=4, alpha=8, quantize="nf4")).finetune
made = load_trainee(Path({str(road.base.folder)!r}), section)
print(type(made.model.base_model.model.model.layers[0].self_attn.q_proj).__name__)"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["Linear4bit"] and "kernels" not in said.stderr


def test_nothing_is_downloaded_when_bitsandbytes_is_imported():
    assert linear4bit() is linear4bit() and "kernels" not in sys.modules
