"""dpo, simpo and orpo: rows as they are encoded, rewards from 0, a margin that grows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ft_pipeline.encode.artifact import Measure, read_pairs, read_reference, reference_spec
from ft_pipeline.errors import IntegrityError, RecipeError
from ft_pipeline.finetune.artifact import read_completion, read_losses
from ft_pipeline.finetune.methods import compared
from ft_pipeline.finetune.methods.compared import compared_batch, compared_rows, row_counts, row_log_probabilities
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.recipe import Lora, Preference
from ft_pipeline_tests import tiny


def preferring(method: str, **changes):
    given = {"beta": 2.0 if method == "simpo" else 0.1, **changes.pop("preference", {})}
    return tiny.recipe(
        method=method, preference=Preference(**given), **{"epochs": 4, "resume_certificate": False, **changes}
    )


@pytest.fixture(scope="session")
def reference(road, pairs):
    tiny.train_job_here(road.store, preferring("dpo"), {"shards": pairs, "base": road.base})
    found = road.store.find(reference_spec(Measure(), shards=pairs, reference=road.base))
    assert found is not None
    return found


def test_a_pair_is_a_window_of_its_two_rows(pairs, reference, tmp_path):
    rows = compared_rows(pairs, "train", cache=tmp_path, reference=reference)
    opinions = list(read_reference(reference, "train"))
    for pair, opinion, row in zip(read_pairs(pairs, "train"), opinions, rows, strict=True):
        assert row.ids.tolist() == [*pair.prompt_ids, *pair.chosen_ids, *pair.prompt_ids, *pair.rejected_ids]
        assert row_counts(row) == [sum(b - a for a, b in spans) for spans in (pair.chosen_spans, pair.rejected_spans)]
        assert row.reference == (opinion.sums["chosen"], opinion.sums["rejected"])
        assert set(row.row_ids) == {pair.row_id} == {opinion.row_id}


@pytest.mark.parametrize("flat", [True, False])
def test_the_untrained_model_has_the_log_probabilities_of_its_reference(road, pairs, reference, tmp_path, flat):
    rows = compared_rows(pairs, "train", cache=tmp_path, reference=reference)
    trainee = load_trainee(road.base.folder, preferring("dpo").finetune)
    if not flat:
        trainee.model.set_attn_implementation("sdpa")
        trainee = replace(trainee, flat=False)
    batch = compared_batch(trainee, rows[:8])
    with torch.no_grad():
        found = row_log_probabilities(trainee.model, batch.rows, batch.counts)
    assert np.abs(found.numpy() - np.array([r.reference for r in rows[:8]]).ravel()).max() < 1e-4


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("dpo", {}),
        ("dpo", {"lora": None, "learning_rate": 1e-3}),
        ("dpo", {"preference": {"loss": "sigmoid_norm", "beta": 2.0}}),
        ("dpo", {"preference": {"sft_weight": 1.0}}),
        ("simpo", {"preference": {"gamma": 1.0}}),
        ("orpo", {}),
    ],
)
def test_margin_and_accuracy_grow(road, pairs, no_mlflow, method, changes):
    made = tiny.train_here(road.store, preferring(method, **changes), pairs, road.base)
    losses = read_losses(made)
    first, last = losses[0], losses[-1]
    if method == "dpo":
        assert abs(first["margin"]) < 1e-4, "the reference is the model before the first step"
    assert last["margin"] > first["margin"] + 0.1
    assert last["accuracy"] > 0.9 and last["loss"] < first["loss"]
    assert last["margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-4)
    proof = read_completion(made)
    assert proof.rows == 64 and proof.validation_loss < proof.validation_loss_before
    assert ("reference" in made.manifest.parents) == (method == "dpo")


def test_the_model_falls_to_the_loss_of_chance_before_it_has_learned(road, pairs, no_mlflow):
    proof = read_completion(tiny.train_here(road.store, preferring("dpo"), pairs, road.base))
    assert proof.validation_loss_before == pytest.approx(np.log(2), abs=1e-5)


def test_a_reference_of_other_rows_is_refused(road, pairs, labelled, reference, tmp_path):
    with pytest.raises(IntegrityError, match="train rows, the shards have"):
        few = tiny.publish_curated(road.store, tiny.pair_rows(12), validation=2, shape="preference")
        compared_rows(tiny.publish_shards(road.store, few, road.base), "train", cache=tmp_path, reference=reference)


def test_dpo_without_its_reference_does_not_start(tmp_path):
    with pytest.raises(RecipeError, match="no reference log-probabilities"):
        method_of(preferring("dpo").finetune, cache=tmp_path)


def test_checkpoints_are_no_reference(road, pairs, no_mlflow):
    checkpoints = tiny.train_here(road.store, preferring("orpo"), pairs, road.base)
    named = preferring("dpo", preference={"reference": checkpoints.ref.digest})
    with pytest.raises(RecipeError, match="is of kind checkpoints, not a base_model"):
        tiny.train_job_here(road.store, named, {"shards": pairs, "base": road.base}, teacher=checkpoints)


def test_another_base_model_can_be_the_reference(road, pairs, tmp_path):
    other = tiny.publish_base(road.store, tiny.base_folder(tmp_path / "other", seed=5))
    jobs = [
        tiny.train_job_here(road.store, whole, {"shards": pairs, "base": road.base}, teacher=other)
        for whole in (preferring("dpo"), preferring("dpo", preference={"reference": other.ref.digest}))
    ]
    refs = [job.spec.parents["reference"] for job in jobs]
    assert refs[0] != refs[1] and refs[1].kind == "reference_logprobs"


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
def test_a_prompt_that_is_computed_once_gives_the_same_loss_and_gradient(
    road, pairs, reference, tmp_path, monkeypatch, lora
):
    section = preferring("dpo", lora=lora).finetune
    method = method_of(section, cache=tmp_path, reference=reference)
    rows = method.items(pairs, "train")[:8]
    found = []
    for shares in (True, False):
        monkeypatch.setattr(compared, "has_noise", lambda _trainee, shares=shares: not shares)
        trainee = load_trainee(road.base.folder, section)
        batch = method.batch(trainee, rows)
        loss = method.loss(trainee, batch)
        loss.total.backward()
        gradients = torch.cat([p.grad.flatten() for p in trainee.trained if p.grad is not None])
        found.append((batch.tokens, {n: float(v) for n, v in loss.facts.items()}, gradients))
    (few, facts, gradients), (many, others, apart) = found
    assert many == sum(len(row.ids) for row in rows) and few < 0.7 * many
    assert facts == pytest.approx(others, rel=1e-5, abs=1e-5)
    assert float((gradients - apart).abs().max()) < 1e-5 * float(apart.abs().max())


def test_with_dropout_each_answer_has_its_own_prompt(road, pairs, reference, tmp_path):
    section = preferring("dpo", lora=Lora(rank=4, alpha=8, dropout=0.1)).finetune
    method = method_of(section, cache=tmp_path, reference=reference)
    rows = method.items(pairs, "train")[:2]
    assert method.batch(load_trainee(road.base.folder, section), rows).tokens == sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
def test_one_large_micro_batch_equals_small_ones(road, pairs, reference, tmp_path, lora):
    section = preferring("dpo", lora=lora).finetune
    method = method_of(section, cache=tmp_path, reference=reference)
    rows = method.items(pairs, "train")
    found = []
    for size in (8, 1):
        trainee = load_trainee(road.base.folder, section)
        for start in range(0, 8, size):
            (method.loss(trainee, method.batch(trainee, rows[start : start + size])).total / 8).backward()
        found.append([p.grad.clone() for p in trainee.trained if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) < 1e-6
