"""SFT, then DPO or KTO with the SFT adapter as the reference: training starts from it, every margin from 0, and TRL does the same."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ft_pipeline.encode.artifact import read_pairs
from ft_pipeline.encode.reference_model import pin, pinned, resolved
from ft_pipeline.errors import NotFoundError, RecipeError
from ft_pipeline.finetune.adapter import package
from ft_pipeline.finetune.artifact import read_completion, read_losses
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.recipe import Lora, Preference
from ft_pipeline_tests import tiny

pytestmark = pytest.mark.slow

LINE = "acme/sft"


def packaged(road, checkpoints):
    return package(road.store, checkpoints=checkpoints, base=road.base, base_uri="home://bases/tiny")


def sft_adapter(road, **changes):
    return packaged(road, tiny.train_here(road.store, tiny.recipe(epochs=2, **changes), road.shards, road.base))


@pytest.fixture
def sft(road, no_mlflow):
    return sft_adapter(road)


def comparing(reference: str, method: str = "dpo", **changes):
    given = {"epochs": 2, "learning_rate": 2e-3, **changes}
    return tiny.recipe(method=method, preference=Preference(beta=0.1, reference=reference), **given)


def trained_from(road, shards, adapter, whole):
    job = tiny.train_job_here(road.store, whole, {"shards": shards, "base": road.base}, teacher=adapter)
    from ft_pipeline.finetune import main

    return tiny._run_here(road.store, job, main.body)


@pytest.mark.parametrize(
    ("method", "lora"), [("dpo", Lora(rank=4, alpha=8)), ("dpo", None), ("kto", Lora(rank=4, alpha=8))]
)
def test_training_starts_from_the_reference(road, pairs, labelled, no_mlflow, method, lora):
    adapter = sft_adapter(road, lora=lora, learning_rate=1e-2 if lora else 1e-3)
    whole = comparing(adapter.ref.digest, method, lora=lora)
    made = trained_from(road, pairs if method == "dpo" else labelled, adapter, whole)
    losses, proof = read_losses(made), read_completion(made)
    assert abs(losses[0]["margin"]) < 1e-6
    if method == "dpo":
        assert proof.validation_loss_before == pytest.approx(0.6931472, abs=1e-6)
    assert abs(losses[-1]["margin"]) > 1e-3
    assert made.manifest.parents["start"] == adapter.ref
    assert packaged(road, made).manifest.parents["start"] == adapter.ref
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    before, after = load_file(adapter.file(name)), load_file(made.file(name))
    assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)


def test_the_base_as_reference_is_another_start(road, pairs, sft, no_mlflow):
    made = [trained_from(road, pairs, sft, comparing(reference)) for reference in ("base", sft.ref.digest)]
    assert "start" not in made[0].manifest.parents
    first, second = (read_losses(m)[0]["logp_chosen"] for m in made)
    assert second > first + 1, "the SFT adapter knows the answers"


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (Lora(rank=8, alpha=8), r"rank 8 \(there 4\)"),
        (Lora(rank=4, alpha=16), r"alpha 16 \(there 8\)"),
        (Lora(rank=4, alpha=8, dora=True), r"dora True \(there False\)"),
        (Lora(rank=4, alpha=8, targets=("q_proj",)), r"targets \['q_proj'\]"),
        (None, "is LoRA of rank 4, and finetune.lora is null"),
    ],
)
def test_another_shape_than_the_adapter_is_refused(road, pairs, sft, lora, said):
    whole = comparing(sft.ref.digest, lora=lora)
    with pytest.raises(RecipeError, match=said):
        tiny.train_job_here(road.store, whole, {"shards": pairs, "base": road.base}, teacher=sft)


def test_layers_that_the_adapter_lacks_are_refused_before_the_first_step(road, pairs, no_mlflow):
    adapter = sft_adapter(road, lora=Lora(rank=4, alpha=8, targets=("q_proj", "v_proj")))
    with pytest.raises(RecipeError, match="differ in 20 tensors"):
        trained_from(road, pairs, adapter, comparing(adapter.ref.digest))


def test_an_adapter_of_another_base_or_a_full_model_under_lora_is_refused(road, pairs, sft, no_mlflow, tmp_path):
    other = tiny.publish_base(road.store, tiny.base_folder(tmp_path / "other", seed=5))
    with pytest.raises(RecipeError, match="was trained on base model"):
        tiny.train_job_here(road.store, comparing(sft.ref.digest), {"shards": pairs, "base": other}, teacher=sft)
    full = sft_adapter(road, lora=None, learning_rate=1e-3)
    with pytest.raises(RecipeError, match="is a full model, and finetune"):
        tiny.train_job_here(road.store, comparing(full.ref.digest), {"shards": pairs, "base": road.base}, teacher=full)


def test_a_model_line_is_its_newest_adapter_and_stays_it_for_training(catalog, road, sft):
    whole = comparing(LINE)
    with pytest.raises(NotFoundError, match="acme/sft has no adapter yet"):
        resolved(whole, pin(catalog, whole.key))
    catalog.set_head(LINE, "adapter", sft)
    measured = resolved(whole, pin(catalog, whole.key))
    assert measured == comparing(sft.ref.digest)
    catalog.set_head(LINE, "adapter", sft_adapter(road, seed=1))
    assert resolved(whole, pinned(catalog, whole.key)) == measured
    assert resolved(whole, pin(catalog, whole.key)) != measured
    with pytest.raises(RecipeError, match="is the recipe's own model line"):
        resolved(comparing("test/tiny"), pin(catalog, "test/tiny"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_steps_from_an_adapter_are_two_steps_of_trl(road, sft, no_mlflow, tmp_path):
    """TRL's own road: a PeftModel with the SFT adapter, a frozen copy of which is the reference. Losses within 1e-5."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from ft_pipeline_tests.finetune.test_trl_parity_preference import QUIET

    rows = tiny.pair_rows(16)
    shards = tiny.publish_shards(road.store, tiny.publish_curated(road.store, rows, shape="preference"), road.base)
    assert len(list(read_pairs(shards, "train"))) == 16
    whole = comparing(sft.ref.digest, epochs=1, schedule="constant", warmup_share=0.0, learning_rate=1e-3)
    steps = read_losses(trained_from(road, shards, sft, whole))
    schedule = Schedule(section=whole.finetune, windows=16)
    order = [int(i) for micro in range(4) for i in schedule.windows_of(micro)]
    base = AutoModelForCausalLM.from_pretrained(road.base.folder, local_files_only=True, dtype=torch.float32)
    trainer = DPOTrainer(
        model=PeftModel.from_pretrained(base, sft.folder, is_trainable=True),
        train_dataset=Dataset.from_list([rows[i] for i in order]),
        args=DPOConfig(
            output_dir=str(tmp_path), num_train_epochs=1, beta=0.1, warmup_steps=0, train_sampling_strategy="sequential", **QUIET
        ),
        processing_class=AutoTokenizer.from_pretrained(road.base.folder),
    )  # fmt: skip
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == len(steps) == 2
    for step, entry in zip(steps, history, strict=True):
        assert step["loss"] == pytest.approx(entry["loss"], abs=1e-5)
        assert step["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-4)
