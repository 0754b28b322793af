"""Supervised training is TRL's on the same rows: the loss, the gradient norm, and the weights after AdamW steps; packed and padded."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.finetune.artifact import ADAPTER_WEIGHTS, MODEL_WEIGHTS, read_losses
from ft_pipeline.finetune.batches import single_rows
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LORA = Lora(rank=4, alpha=8)
STEPS = 3


def labelled(windows):
    """Rows as TRL takes them when they are tokenised: labels of -100 where nothing is trained."""
    for row in (row for window in windows for row in single_rows(window)):
        labels = torch.full((len(row.ids),), -100)
        for start, end in row.spans:
            labels[start:end] = torch.from_numpy(row.ids[start:end].astype("int64"))
        yield {"input_ids": row.ids.tolist(), "labels": labels.tolist()}


def theirs(road, folder, recipe, rows, **changes):
    """(losses, gradient norms, trained tensors) of TRL's SFTTrainer over all rows in every step, from our initial adapter."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    section = recipe.finetune
    model = AutoModelForCausalLM.from_pretrained(road.base.folder, dtype=torch.float32)
    if lora := section.lora:
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM",
            use_dora=lora.dora, use_rslora=lora.rslora,
        )  # fmt: skip
        model = get_peft_model(model, config)
        set_peft_model_state_dict(model, load_trainee(road.base.folder, section).tensors())
    settings = SFTConfig(**{
        "output_dir": str(folder), "per_device_train_batch_size": len(rows), "num_train_epochs": STEPS, "max_length": None,
        "learning_rate": section.learning_rate, "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0,
        "max_grad_norm": section.max_grad_norm, "gradient_checkpointing": False, "bf16": False, "use_cpu": True,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, **changes,
    })  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(road.base.folder),
    )  # fmt: skip
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    found = get_peft_model_state_dict(model) if section.lora else model.state_dict()
    return [e["loss"] for e in told], [float(e["grad_norm"]) for e in told], {n: t.detach() for n, t in found.items()}


@pytest.mark.parametrize(
    ("lora", "padding_free"), [(LORA, False), (Lora(rank=4, alpha=8, dora=True, rslora=True), True), (None, True)]
)
def test_losses_gradients_and_weights_are_those_of_sft_trainer(road, tmp_path, no_mlflow, lora, padding_free):
    windows = list(read_windows(road.shards, "train"))
    whole = tiny.recipe(
        lora=lora, learning_rate=1e-4, epochs=STEPS, windows_per_step=len(windows), windows_per_micro=1, schedule="constant",
        warmup_share=0.0, seed=5,
    )  # fmt: skip
    made = tiny.train_here(road.store, whole, road.shards, road.base)
    told = read_losses(made)
    losses, norms, weights = theirs(road, tmp_path, whole, list(labelled(windows)), padding_free=padding_free)
    assert [e["loss"] for e in told] == pytest.approx(losses, rel=1e-5)
    assert [e["grad_norm"] for e in told] == pytest.approx(norms, rel=1e-4)
    ours = load_file(made.file(ADAPTER_WEIGHTS if lora else MODEL_WEIGHTS))
    assert set(ours) <= set(weights) and len(ours) >= 12
    assert max(float((ours[name] - weights[name]).abs().max()) for name in ours) < 1e-6
