"""The packaged adapter loads into PEFT, says what it was trained on, and is never half-trained or empty."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from ft_pipeline.errors import IntegrityError
from ft_pipeline.finetune.adapter import package
from ft_pipeline.finetune.artifact import read_completion, read_losses
from ft_pipeline.finetune.figures import loss_curve, mlflow_page
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import tiny

URI = "home://bases/tiny"


@pytest.fixture
def trained(road, no_mlflow):
    return tiny.train_here(road.store, tiny.recipe(), road.shards, road.base)


def republished(road, trained, change):
    """The checkpoints artifact with changed files, under another spec."""
    spec = Spec(kind="checkpoints", config={"changed": change.__name__}, parents=trained.manifest.parents, code="test")
    if found := road.store.find(spec):
        return found
    with road.store.publish(spec) as draft:
        for name in trained.manifest.files:
            shutil.copyfile(trained.file(name), draft.folder / name)
        change(draft.folder)
        draft.counts.update(trained.manifest.counts)
    return draft.artifact


def test_an_adapter_holds_all_that_serving_needs(road, trained):
    adapter = package(road.store, checkpoints=trained, base=road.base, base_uri=URI)
    assert sorted(adapter.manifest.files) == [
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "completion.json",
        "resume.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads(adapter.file("adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny", road.base.ref.digest)
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert adapter.manifest.parents == {
        "checkpoints": trained.ref, "base": road.base.ref, "shards": road.shards.ref,
    }  # fmt: skip
    assert package(road.store, checkpoints=trained, base=road.base, base_uri=URI).ref == adapter.ref


def test_peft_loads_it_and_it_changes_the_answers(road, trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = package(road.store, checkpoints=trained, base=road.base, base_uri=URI)
    tokenizer = AutoTokenizer.from_pretrained(adapter.folder)
    model = AutoModelForCausalLM.from_pretrained(road.base.folder)
    prompt = tokenizer.apply_chat_template(tiny.chat_rows(1)[0]["messages"], return_tensors="pt", return_dict=False)
    with torch.no_grad():
        before = model(prompt).logits
        after = PeftModel.from_pretrained(model, adapter.folder)(prompt).logits
    assert float((after - before).abs().max()) > 0.1


def test_a_run_proves_that_it_is_complete(road, trained):
    proof = read_completion(trained)
    losses = read_losses(trained)
    assert proof.steps == proof.planned_steps == len(losses) and proof.sampler_exhausted
    assert proof.rows == 80 and proof.windows_consumed == proof.steps * 8
    assert proof.validation_loss < proof.validation_loss_before
    assert losses[-1]["validation_loss"] == proof.validation_loss
    assert proof.boundary["checked"] and proof.boundary["leak_seen"]


def test_an_unfinished_run_is_not_packaged(road, trained):
    def stopped_early(folder):
        proof = json.loads((folder / "completion.json").read_text())
        (folder / "completion.json").write_text(json.dumps({**proof, "steps": 3}))

    with pytest.raises(IntegrityError, match="stopped after 3 of"):
        package(road.store, checkpoints=republished(road, trained, stopped_early), base=road.base, base_uri=URI)


def test_an_adapter_of_zeros_is_not_packaged(road, trained):
    def empty(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({n: t * 0 if "lora_B" in n else t for n, t in tensors.items()}, folder / "adapter_model.safetensors")

    with pytest.raises(IntegrityError, match="every lora_B is zero"):
        package(road.store, checkpoints=republished(road, trained, empty), base=road.base, base_uri=URI)


def test_a_full_model_is_packaged_as_a_model(road, no_mlflow):
    from transformers import AutoModelForCausalLM

    trained = tiny.train_here(road.store, tiny.recipe(lora=None, epochs=2), road.shards, road.base)
    adapter = package(road.store, checkpoints=trained, base=road.base, base_uri=URI)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(adapter.manifest.files)
    model = AutoModelForCausalLM.from_pretrained(adapter.folder)
    base = AutoModelForCausalLM.from_pretrained(road.base.folder)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_text_rows_are_trained_by_cpt(road, no_mlflow):
    from ft_pipeline.recipe import Encode

    curated = tiny.publish_curated(
        road.store, [{"text": f"{s} {n}"} for s in tiny.SENTENCES for n in range(9)], shape="text"
    )
    shards = tiny.publish_shards(road.store, curated, road.base, encode=Encode(window_tokens=64))
    trained = tiny.train_here(road.store, tiny.recipe(method="cpt", lora=None, epochs=6), shards, road.base)
    losses = [entry["loss"] for entry in read_losses(trained)]
    assert losses[-1] < losses[0] - 0.5 and read_completion(trained).validation_loss is None


def test_the_metadata_page_shows_the_curve_and_mlflow(trained):
    assert loss_curve(read_losses(trained)).startswith("![loss curve](data:image/png;base64,")
    assert mlflow_page("sqlite:///x.db", {}) is None
    facts = {"mlflow_run_id": "r", "mlflow_experiment_id": "1"}
    assert mlflow_page("sqlite:///x.db", facts) == "http://localhost:5000/#/experiments/1/runs/r"
    assert mlflow_page("http://mlflow/", facts) == "http://mlflow/#/experiments/1/runs/r"
