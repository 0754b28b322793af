"""distill: what a teacher expects is kept once, a student comes nearer to it, and the divergence is the one of the papers."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune import teacher_main
from ft_pipeline.finetune.artifact import read_completion, read_losses
from ft_pipeline.finetune.methods.distill import divergence
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.teacher import read_taught
from ft_pipeline.recipe import Distill, Lora
from ft_pipeline_tests import tiny

pytestmark = pytest.mark.slow

VOCABULARY = 384
FULL = {"lora": None, "learning_rate": 3e-3, "epochs": 4, "windows_per_step": 4, "resume_certificate": False}
"""LoRA beside a random, frozen embedding has little to say."""


def distilling(teacher, **changes):
    given = {"teacher": teacher.ref.digest, "alpha": 1.0, "top_k": 8, **changes.pop("distill", {})}
    return tiny.recipe(**{"method": "distill", "distill": Distill(**given), **FULL, **changes})


@pytest.fixture(scope="session")
def teacher(road, tmp_path_factory):
    """The base model after some epochs of sft, as a base model of its own."""
    folder = tmp_path_factory.mktemp("teacher") / "base"
    shutil.copytree(road.base.folder, folder, ignore=shutil.ignore_patterns("manifest.json", "digests.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_MLFLOW", "off")
        made = tiny.train_here(
            road.store, tiny.recipe(**{**FULL, "epochs": 8, "windows_per_step": 8}), road.shards, road.base
        )
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        shutil.copyfile(made.file(name), folder / name)
    return tiny.publish_base(road.store, folder)


@pytest.fixture(scope="session")
def lessons(road, teacher):
    """Job and artifact of what the teacher expects."""
    job = tiny.train_job_here(
        road.store, distilling(teacher), {"shards": road.shards, "base": road.base}, teacher=teacher
    )
    return road.store.fetch(job.spec.parents["teacher"])


def test_each_trained_token_has_the_likeliest_ones_of_the_teacher(road, teacher, lessons):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher.folder, local_files_only=True).eval()
    taught = read_taught(lessons, "train")
    windows = list(read_windows(road.shards, "train"))
    assert len(taught) == len(windows)
    assert lessons.manifest.parents["teacher"] == teacher.ref
    for number in (0, len(windows) - 1):
        window = windows[number]
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in window.lengths]))[None]
        with torch.no_grad():
            ids = torch.from_numpy(window.ids.astype(np.int64))[None]
            logs = model(ids, position_ids=positions, use_cache=False).logits[0].log_softmax(-1)
        places = [place - 1 for a, b in window.spans for place in range(a, b)]
        values, _ = logs[places].topk(8, dim=-1)
        tokens, found = taught.of(number)
        assert float((torch.from_numpy(found.copy()) - values).abs().max()) < 1e-4
        assert torch.allclose(logs[places].gather(1, torch.from_numpy(tokens.astype(np.int64))), values, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.6),
        ({"distill": {"beta": 1.0}}, 0.6),
        ({"distill": {"beta": 0.5, "temperature": 2.0}}, 0.6),
        ({"lora": Lora(rank=4, alpha=8), "learning_rate": 1e-2}, 0.9),
    ],
)
def test_the_divergence_falls(road, teacher, no_mlflow, changes, share):
    made = tiny.train_here(road.store, distilling(teacher, **changes), road.shards, road.base, teacher=teacher)
    losses = read_losses(made)
    assert losses[-1]["divergence"] < share * losses[0]["divergence"]
    assert losses[-1]["loss"] == pytest.approx(losses[-1]["divergence"], rel=1e-5)
    proof = read_completion(made)
    assert proof.validation_loss < proof.validation_loss_before


def test_alpha_mixes_the_divergence_with_the_loss_of_the_text(road, teacher, lessons, tmp_path):
    found = {}
    for alpha in (0.0, 0.25, 1.0):
        section = distilling(teacher, distill={"alpha": alpha}).finetune
        trainee = load_trainee(road.base.folder, section)
        method = method_of(section, cache=tmp_path, teacher=lessons)
        batch = method.batch(trainee, method.items(road.shards, "train")[:2])
        with torch.no_grad():
            loss = method.loss(trainee, batch)
        found[alpha] = float(loss.total)
    assert found[0.0] == pytest.approx(float(loss.facts["nll"]), rel=1e-6)
    assert found[0.25] == pytest.approx(0.25 * found[1.0] + 0.75 * found[0.0], rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_over_the_whole_vocabulary_it_is_the_divergence_of_trl(monkeypatch, beta):
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 50) * 3, torch.randn(2, 5, 50) * 3
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=2.0, reduction="none")
    logs = [(t / 2.0).log_softmax(-1).flatten(0, 1) for t in (teacher, student)]
    found = divergence(*logs, beta=beta, whole=True)
    assert torch.allclose(found, theirs.sum(-1).flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_what_is_kept_bounds_the_divergence_from_below_and_is_zero_for_equals(beta):
    torch.manual_seed(1)
    teacher, student = (
        (torch.randn(20, 60, dtype=torch.float64) * 2).log_softmax(-1),
        (torch.randn(20, 60, dtype=torch.float64) * 2).log_softmax(-1),
    )
    whole = divergence(teacher, student, beta=beta, whole=True)
    places = teacher.topk(8, dim=-1).indices
    kept = divergence(teacher.gather(1, places), student.gather(1, places), beta=beta)
    assert bool((kept <= whole + 1e-9).all()) and bool((kept >= -1e-9).all())
    same = divergence(teacher.gather(1, places), teacher.gather(1, places), beta=beta)
    assert float(same.abs().max()) < 1e-9


def test_the_job_goes_on_at_the_block_where_it_died_and_gives_the_same_bytes(
    road, teacher, lessons, monkeypatch, tmp_path
):
    monkeypatch.setattr(teacher_main, "BLOCK_WINDOWS", 4)
    saved, calls = teacher_main.save_block, []

    def dying(path, expected):
        saved(path, expected)
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:-100])
            raise KeyboardInterrupt

    monkeypatch.setattr(teacher_main, "save_block", dying)
    whole = distilling(teacher, distill={"top_k": 7})
    parts = {"shards": road.shards, "base": road.base}
    with pytest.raises(KeyboardInterrupt):
        tiny.train_job_here(road.store, whole, parts, teacher=teacher)
    resumed = tiny.train_job_here(road.store, whole, parts, teacher=teacher).spec.parents["teacher"]
    assert calls[2] == calls[1], "the cut block is computed again, the whole one before it is not"
    road.store.fetch(resumed).folder.rename(tmp_path / "away")
    monkeypatch.setattr(teacher_main, "save_block", saved)
    assert tiny.train_job_here(road.store, whole, parts, teacher=teacher).spec.parents["teacher"] == resumed


def test_a_teacher_of_another_tokenizer_is_refused(road, tmp_path):
    from tokenizers import Tokenizer

    folder = tiny.base_folder(tmp_path / "other", seed=2)
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens.add_tokens(["zzz"])
    tokens.save(str(folder / "tokenizer.json"))
    other = tiny.publish_base(road.store, folder)
    with pytest.raises(RecipeError, match="has another tokenizer than the base model"):
        tiny.train_job_here(road.store, distilling(other), {"shards": road.shards, "base": road.base}, teacher=other)


def test_more_tokens_than_the_vocabulary_are_the_vocabulary(road, teacher, no_mlflow):
    whole = distilling(teacher, distill={"top_k": 1000}, epochs=1)
    made = tiny.train_here(road.store, whole, road.shards, road.base, teacher=teacher)
    lessons = road.store.fetch(made.manifest.parents["teacher"])
    assert read_taught(lessons, "train").tokens.shape[1] == VOCABULARY
    assert read_losses(made)[-1]["divergence"] > 0
