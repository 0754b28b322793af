"""reward: chosen answers score above rejected ones, packed rows score as alone, and transformers loads what was saved."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from ft_pipeline.encode.artifact import read_pairs
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.artifact import read_completion, read_losses
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.score import classifier_config, scores
from ft_pipeline.recipe import Lora, RewardModel
from ft_pipeline_tests import tiny


def rewarding(**changes):
    return tiny.recipe(
        **{"method": "reward", "epochs": 4, "learning_rate": 3e-3, "resume_certificate": False, **changes}
    )


@pytest.fixture(scope="session")
def trained(road, pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_MLFLOW", "off")
        return {
            lora is not None: tiny.train_here(road.store, rewarding(lora=lora), pairs, road.base)
            for lora in (None, Lora(rank=4, alpha=8))
        }


@pytest.mark.parametrize("lora", [True, False])
def test_the_accuracy_comes_near_one(trained, lora):
    made = trained[lora]
    losses = read_losses(made)
    assert losses[-1]["accuracy"] > 0.9 and losses[-1]["margin"] > losses[0]["margin"] + 0.5
    assert losses[-1]["loss"] < 0.3 < losses[0]["loss"]
    assert losses[-1]["margin"] == pytest.approx(losses[-1]["reward_chosen"] - losses[-1]["reward_rejected"], abs=1e-4)
    proof = read_completion(made)
    assert proof.validation_loss < proof.validation_loss_before


@pytest.mark.parametrize("flat", [True, False])
def test_packed_rows_score_as_each_does_alone(road, pairs, tmp_path, flat):
    section = rewarding().finetune
    trainee = load_trainee(road.base.folder, section)
    if not flat:
        trainee.model.set_attn_implementation("sdpa")
        trainee = replace(trainee, flat=False)
    method = method_of(section, cache=tmp_path)
    rows = method.items(pairs, "train")[:6]
    with torch.no_grad():
        packed = method.batch(trainee, rows)
        together = scores(trainee.model, packed.rows, packed.ends)
        alone = [method.batch(trainee, [row]) for row in rows]
        single = torch.cat([scores(trainee.model, batch.rows, batch.ends) for batch in alone])
    assert len(together) == 12 and float((together - single).abs().max()) < 1e-5


def classifier(road, made, folder):
    """What a user loads: AutoModelForSequenceClassification from the full model, or the base with the adapter by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    def whole(path):
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, local_files_only=True)

    names = made.manifest.files
    if "model.safetensors" in names:
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(made.file(name), folder / name)
        return whole(folder)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(made.file(name), folder / name)
    return PeftModel.from_pretrained(whole(road.base.folder), folder)


@pytest.mark.parametrize("lora", [True, False])
def test_transformers_loads_it_and_ranks_the_pairs_as_the_run_did(road, pairs, trained, tmp_path, lora):
    made = trained[lora]
    model = classifier(road, made, tmp_path).eval()
    chosen, rejected = [], []
    for pair in list(read_pairs(pairs, "validation")):
        for ids, found in ((pair.chosen_ids, chosen), (pair.rejected_ids, rejected)):
            with torch.no_grad():
                found.append(model(torch.tensor([[*pair.prompt_ids, *ids]])).logits[0, 0])
    loss = -logsigmoid(torch.stack(chosen) - torch.stack(rejected)).mean()
    assert float(loss) == pytest.approx(read_completion(made).validation_loss, rel=1e-3)
    assert float((torch.stack(chosen) > torch.stack(rejected)).float().mean()) > 0.9


def test_what_is_saved_holds_the_score_and_no_language_head(trained):
    import json

    from safetensors import safe_open

    for lora, file in ((True, "adapter_model.safetensors"), (False, "model.safetensors")):
        with safe_open(trained[lora].file(file), framework="np") as content:
            names = list(content.keys())
        assert [n for n in names if n.endswith("score.weight")] and not [n for n in names if "lm_head" in n]
    config = json.loads(trained[False].file("config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["id2label"] == {"0": "LABEL_0"}
    adapter = json.loads(trained[True].file("adapter_config.json").read_text())
    assert adapter["task_type"] == "SEQ_CLS" and "score" not in adapter["target_modules"]


def test_centred_rewards_lie_around_zero(road, pairs, tmp_path):
    section = rewarding(reward=RewardModel(center_weight=0.5)).finetune
    trainee = load_trainee(road.base.folder, section)
    found = {}
    for weight in (0.0, 0.5):
        method = method_of(replace(section, reward=RewardModel(center_weight=weight)), cache=tmp_path)
        batch = method.batch(trainee, method.items(pairs, "train")[:4])
        with torch.no_grad():
            values = scores(trainee.model, batch.rows, batch.ends)
            found[weight] = float(method.loss(trainee, batch).total)
    centre = 0.5 * ((values[::2] + values[1::2]) ** 2).sum()
    assert found[0.5] == pytest.approx(found[0.0] + float(centre), rel=1e-5)


def test_a_model_whose_classifier_transformers_lacks_is_refused():
    from transformers import LlamaConfig

    from ft_pipeline.finetune.score import add_score

    class Other:
        config = LlamaConfig()

    Other.config.model_type = "unheard_of"
    with pytest.raises(RecipeError, match="type unheard_of has no sequence classifier"):
        add_score(Other())
    assert classifier_config({"architectures": ["Qwen3ForCausalLM"]})["architectures"] == [
        "Qwen3ForSequenceClassification"
    ]
