"""The certificate says bit-exact where a killed canary ends in the same bytes, and says otherwise where it does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, Gemma2Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from ft_pipeline.finetune import resume_certificate
from ft_pipeline.finetune.adapter import package
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.resume_certificate import certified, tiny_base
from ft_pipeline.finetune.resume_proof import not_run, read_certificate, told
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny
from ft_pipeline_tests.runs import run_over

pytestmark = pytest.mark.slow

DROPOUT = Lora(rank=4, alpha=8, dropout=0.1)


def certificate(road, tmp_path, **changes):
    run = run_over(road, tmp_path, resume_certificate=True, **changes)
    return certified(run, base=road.base.folder, folder=run.metrics.folder), run


@pytest.mark.parametrize(
    "changes", [{}, {"lora": DROPOUT}, {"lora": None}, {"dtype": "bfloat16"}, {"lora": None, "dtype": "bfloat16"}]
)
def test_a_killed_and_stopped_canary_ends_in_the_same_bytes(road, tmp_path, changes):
    facts, run = certificate(road, tmp_path, **changes)
    assert facts["verdict"] == "bit-exact" and facts["scope"]["adapter"] == (changes.get("lora", ...) is not None)
    assert 0 < facts["scope"]["killed_in_micro"] < facts["scope"]["stopped_in_micro"] < facts["scope"]["micros"]
    assert told(facts).startswith("bit-exact (LlamaForCausalLM of the same class, cpu")
    assert not list(run.metrics.folder.glob("canary-*"))


def test_it_is_made_once_and_the_same_every_time(road, tmp_path):
    first, run = certificate(road, tmp_path / "a")
    assert certificate(road, tmp_path / "b")[0] == first
    (run.metrics.folder / "resume.json").write_text(json.dumps({"verdict": "kept"}))
    assert certified(run, base=road.base.folder, folder=run.metrics.folder) == {"verdict": "kept"}


class Forgetful:
    """A method with a state of its own that no checkpoint holds."""

    def __init__(self, method, drift: float) -> None:
        self.method, self.drift, self.calls = method, drift, 0

    def __getattr__(self, name):
        return getattr(self.method, name)

    def loss(self, trainee, batch):
        self.calls += 1
        return Loss(total=self.method.loss(trainee, batch).total * (1 + self.drift * self.calls))


def test_a_method_that_forgets_something_is_seen(road, tmp_path):
    run = run_over(road, tmp_path, resume_certificate=True)
    object.__setattr__(run, "method", Forgetful(run.method, 0.1))
    facts = certified(run, base=road.base.folder, folder=run.metrics.folder)
    assert facts["verdict"] == "not provable" and "differ" in told(facts)


def test_a_small_difference_is_a_tolerance(road, tmp_path, monkeypatch):
    """As of kernels that add in another order on each run."""
    trained = resume_certificate.train

    def nearly(run):
        state = trained(run)
        with torch.no_grad():
            run.trainee.trained[0].mul_(1 + 1e-6 * run.metrics.first_step)
        return state

    monkeypatch.setattr(resume_certificate, "train", nearly)
    facts, _ = certificate(road, tmp_path)
    assert facts["verdict"] == "tolerance" and 1e-6 <= facts["difference"] <= 1e-4
    assert told(facts).startswith("tolerance within 1e-0")


def test_a_canary_that_cannot_live_stops_nothing_and_says_so(road, tmp_path):
    said = []
    run = run_over(road, tmp_path, resume_certificate=True, listener=said.append)
    facts = certified(run, base=tmp_path / "nowhere", folder=run.metrics.folder)
    assert facts["verdict"] == "not provable" and facts["reason"].startswith("the canary ended with ")
    assert any("exact resume is not provable" in m.text for m in said)


def test_what_was_not_run_is_told(road, tmp_path):
    run = run_over(road, tmp_path)
    facts = certified(run, base=road.base.folder, folder=run.metrics.folder)
    assert told(facts) == "not run: the recipe says resume_certificate: false"
    assert not_run("x")["verdict"] == "not run"


def test_a_stop_ends_the_canary_at_once_and_nothing_is_kept(road, tmp_path):
    run = run_over(road, tmp_path, resume_certificate=True)
    run.stop.after = -1
    facts = certified(run, base=road.base.folder, folder=run.metrics.folder)
    assert told(facts) == "not run: the run was stopped before"
    assert not (run.metrics.folder / "resume.json").exists()


def test_it_travels_with_the_adapter(road, no_mlflow):
    recipe = tiny.recipe(epochs=1)
    recipe = replace(recipe, finetune=replace(recipe.finetune, resume_certificate=True))
    made = tiny.train_here(road.store, recipe, road.shards, road.base)
    assert read_certificate(made)["verdict"] == "bit-exact"
    adapter = package(road.store, checkpoints=made, base=road.base, base_uri="home://bases/tiny")
    assert read_certificate(adapter) == read_certificate(made)


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (LlamaConfig(num_attention_heads=32, num_key_value_heads=8), 2),
        (LlamaConfig(num_attention_heads=32, num_key_value_heads=32), 4),
        (Qwen3Config(num_attention_heads=16, num_key_value_heads=8, head_dim=128), 2),
        (Gemma2Config(), 2),
        (Qwen3MoeConfig(num_experts=64, num_attention_heads=16, num_key_value_heads=4), 2),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_a_canary_is_small_and_of_the_same_class(tmp_path, config, heads):
    config.vocab_size = 300
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    config.save_pretrained(tmp_path / "base")
    made = AutoConfig.from_pretrained(tiny_base(tmp_path / "base", tmp_path / "canary"))
    assert type(made) is type(config) and made.vocab_size == 300
    assert (made.num_hidden_layers, made.hidden_size, made.num_key_value_heads) == (2, 64, heads)
    assert (tmp_path / "canary" / "model.safetensors").stat().st_size < 4e6
