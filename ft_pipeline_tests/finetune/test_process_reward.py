"""process_reward: steps are told right from wrong, packed solutions score as alone, TRL's rows, and transformers loads what was saved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ft_pipeline.acquire import dataset
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.encode.artifact import read_stepwise
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.artifact import read_completion, read_losses
from ft_pipeline.finetune.boundary import check_boundaries
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.rollout import side_by_side
from ft_pipeline.finetune.score import add_score, classifier_config, scores
from ft_pipeline.recipe import Curate, Dataset, Encode, Lora, NearDuplicates, RewardModel, Splits
from ft_pipeline.workers.pool import Pool
from ft_pipeline_tests import tiny

pytestmark = pytest.mark.slow


def judging(**changes):
    defaults = {"method": "process_reward", "epochs": 4, "learning_rate": 3e-3, "resume_certificate": False}
    return tiny.recipe(**{**defaults, **changes})


@pytest.fixture(scope="session")
def trained(road, stepwise):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_MLFLOW", "off")
        return {
            lora is not None: tiny.train_here(
                road.store, judging(lora=lora, resume_certificate=lora is not None), stepwise, road.base
            )
            for lora in (None, Lora(rank=4, alpha=8))
        }


@pytest.mark.parametrize("lora", [True, False])
def test_right_steps_are_told_from_wrong_ones(trained, lora):
    losses, proof = read_losses(trained[lora]), read_completion(trained[lora])
    first, last = losses[0], losses[-1]
    # so praising or blaming every step is no way to it
    assert 0.4 < sum(entry["right"] for entry in losses) / len(losses) < 0.65
    assert last["accuracy"] > 0.9
    assert last["loss"] < 0.3 < first["loss"] and last["margin"] > first["margin"] + 1
    assert proof.validation_loss < 0.5 < 0.6 < proof.validation_loss_before


def test_a_step_is_judged_at_the_last_token_of_the_separator_behind_it(road, stepwise, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(road.base.folder)
    rows = method_of(judging().finetune, cache=tmp_path).items(stepwise, "train")
    for number, (row, item) in enumerate(zip(read_stepwise(stepwise, "train"), rows, strict=True)):
        source = tiny.stepwise_rows(number + 1)[number]
        # the row of TRL's former PRMTrainer: each step and the separator tokenised apart, the label at the last token
        text = tokenizer.apply_chat_template(source["prompt"], tokenize=False, add_generation_prompt=True)
        ids, labels = tokenizer(text)["input_ids"], {}
        for step, label in zip(source["steps"], source["labels"], strict=True):
            ids = [*ids, *tokenizer(step)["input_ids"], *tokenizer("\n")["input_ids"]]
            labels[len(ids) - 1] = label
        assert item.ids.tolist() == ids == [*row.prompt_ids, *row.completion_ids]
        assert dict(zip((a for a, _ in item.spans), item.labels, strict=True)) == labels
        assert item.trained_tokens == len(source["steps"]) and item.row_ids == (row.row_id,)
    assert rows[-1].labels == rows[len(rows) - 1].labels == item.labels and len(rows[2:5]) == 3


@pytest.mark.parametrize("flat", [True, False])
def test_packed_solutions_score_as_each_does_alone(road, stepwise, tmp_path, flat):
    section = judging().finetune
    trainee = load_trainee(road.base.folder, section)
    if not flat:
        trainee.model.set_attn_implementation("sdpa")
        trainee = replace(trainee, flat=False)
    method = method_of(section, cache=tmp_path)
    rows = method.items(stepwise, "train")[:6]
    with torch.no_grad():
        packed = method.batch(trainee, rows)
        together = scores(trainee.model, packed.rows, packed.ends)
        alone = [method.batch(trainee, [row]) for row in rows]
        single = torch.cat([scores(trainee.model, batch.rows, batch.ends) for batch in alone])
        total = method.loss(trainee, packed).total
    assert len(together) == sum(len(row.labels) for row in rows) == sum(method.weight(row) for row in rows)
    assert float((together - single).abs().max()) < 1e-5
    labels = torch.tensor([float(label) for row in rows for label in row.labels])
    assert float(total) == pytest.approx(float(binary_cross_entropy_with_logits(together, labels, reduction="sum")))


def test_the_boundary_check_packs_solutions_as_training_does(road, stepwise, tmp_path):
    section = judging().finetune
    trainee = load_trainee(road.base.folder, section)
    windows = side_by_side(method_of(section, cache=tmp_path).items(stepwise, "train"))
    assert max(len(window.lengths) for window in windows) > 1
    assert check_boundaries(trainee, windows)["rows"] > 1


@pytest.mark.parametrize("lora", [True, False])
def test_transformers_loads_it_and_judges_the_steps_as_the_run_did(road, stepwise, trained, tmp_path, lora):
    from peft import PeftModel
    from transformers import AutoModelForTokenClassification as Classifier

    made = trained[lora]
    weights, config = ("adapter_model.safetensors", "adapter_config.json") if lora else ("model.safetensors", "config.json")  # fmt: skip
    for name in (weights, config):
        shutil.copyfile(made.file(name), tmp_path / name)
    whole = Classifier.from_pretrained(road.base.folder if lora else tmp_path, num_labels=1, local_files_only=True)
    model = (PeftModel.from_pretrained(whole, tmp_path) if lora else whole).eval()
    found, labels = [], []
    for row in read_stepwise(stepwise, "validation"):
        with torch.no_grad():
            logits = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0, :, 0]
        found += logits[[len(row.prompt_ids) + end for end in row.ends]].tolist()
        labels += [float(label) for label in row.labels]
    loss = binary_cross_entropy_with_logits(torch.tensor(found), torch.tensor(labels))
    assert float(loss) == pytest.approx(read_completion(made).validation_loss, rel=1e-3)


def test_what_is_saved_holds_the_score_with_its_bias_and_a_certificate(trained):
    from safetensors import safe_open

    for lora, file in ((True, "adapter_model.safetensors"), (False, "model.safetensors")):
        with safe_open(trained[lora].file(file), framework="np") as content:
            names = list(content.keys())
        assert {n.rpartition("score.")[2] for n in names if "score." in n} == {"weight", "bias"}
        assert not [n for n in names if "lm_head" in n]
    assert json.loads(trained[True].file("resume.json").read_text())["verdict"] == "bit-exact"
    config = json.loads(trained[False].file("config.json").read_text())
    assert config["architectures"] == ["LlamaForTokenClassification"]
    assert json.loads(trained[True].file("adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"


def test_other_rows_other_sections_and_unknown_models_are_refused(road, pairs):
    with pytest.raises(RecipeError, match="trains on rows of kind stepwise"):
        tiny.train_job_here(road.store, judging(), {"shards": pairs, "base": road.base})
    with pytest.raises(RecipeError, match="reward belongs to reward, not to process_reward"):
        tiny.train_job_here(road.store, judging(reward=RewardModel()), {"shards": pairs, "base": road.base})
    with pytest.raises(RecipeError, match="step_separator '; ' belongs to process_reward, not to reward"):
        split = tiny.recipe(method="reward", encode=Encode(step_separator="; "))
        tiny.train_job_here(road.store, split, {"shards": pairs, "base": road.base})
    with pytest.raises(ValueError, match="step_separator is empty"):
        Encode(step_separator="")
    with pytest.raises(RecipeError, match="type unheard_of has no token classifier"):
        add_score(SimpleNamespace(config=SimpleNamespace(model_type="unheard_of")), "process_reward")
    named = classifier_config({"architectures": ["Qwen3ForCausalLM"]}, "process_reward")["architectures"]
    assert named == ["Qwen3ForTokenClassification"]


def test_bad_solutions_are_dropped_with_their_reason_and_the_others_reach_the_method(home, store, tmp_path):
    question = "which module is meant, and why do you think so? {}"
    good = [
        {"q": question.format(tiny.WORDS[n % 8] * (n + 1)), "s": row["steps"], "l": row["labels"]}
        for n, row in enumerate(tiny.stepwise_rows(12))
    ]
    bad = {
        "step_labels": {"q": "a?", "s": ["one", "two"], "l": [True]},
        "empty_step": {"q": "b?", "s": ["one", " "], "l": [True, True]},
        "wrong_type": {"q": "c?", "s": ["one"], "l": [1]},
        "unknown_layout": {"q": "d?", "s": ["one"], "l": None},
        "control_token": {"q": "e?", "s": ["one<|end|>"], "l": [True]},
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*good, *bad.values()]))
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))
    source = Dataset(
        uri=str(path), licence="CC0-1.0", mapping={"prompt": "{{ q }}", "steps": "{{ s }}", "labels": "{{ l }}"}
    )
    raw = dataset.acquire(source, settings=home, store=store).ref
    config = Curate(splits=Splits(validation=0.0, holdout=0.0), near_duplicates=NearDuplicates(policy="off"))
    curation = Curation(config=config, raw=raw, tokens=("<|end|>",), dataset=source)
    made = curate(curation, store=store, workforce=Pool(1))
    dropped = {entry["origin"]: entry["reason"] for entry in pl.read_parquet(made.file("ledger.parquet")).to_dicts()}
    assert dropped == {f"rows.jsonl:{len(good) + 1 + n}": reason for n, reason in enumerate(bad)}
    shards = tiny.publish_shards(store, made, base)
    rows = method_of(judging().finetune, cache=tmp_path).items(shards, "train")
    assert sorted(row.labels for row in rows) == sorted(tuple(row["l"]) for row in good)
    assert tiny.train_job_here(store, judging(), {"shards": shards, "base": base}).section["method"] == "process_reward"
