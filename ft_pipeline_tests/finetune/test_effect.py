"""A run that changed nothing publishes nothing; early stopping publishes the best weights."""

from __future__ import annotations

import json

import pytest
import torch

from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.artifact import read_completion, read_losses, shortfall
from ft_pipeline.finetune.effect import Probe, refuse_no_effect
from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.retention import best_step
from ft_pipeline_tests import tiny
from ft_pipeline_tests.runs import bytes_of, run_over


def refuse(run, probe) -> None:
    refuse_no_effect(run.trainee, run.trainee.tensors(), probe)


@pytest.mark.parametrize("lora", [..., None])
def test_a_trained_model_passes_and_an_untrained_one_is_refused(road, tmp_path, lora):
    run = run_over(road, tmp_path, epochs=1, **({} if lora is ... else {"lora": lora}))
    probe = Probe.of(run.trainee, run.method, run.train)
    with pytest.raises(TrainingFailed, match="every lora_B is zero" if lora is ... else "exactly as its base model"):
        refuse(run, probe)
    train(run)
    refuse(run, probe)


def test_weights_that_changed_without_any_effect_are_refused(road, tmp_path):
    run = run_over(road, tmp_path)
    probe = Probe.of(run.trainee, run.method, run.train)
    with torch.no_grad():
        for name, parameter in run.trainee.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-30)
    with pytest.raises(TrainingFailed, match="exactly as its base model does"):
        refuse(run, probe)


def test_weights_that_are_not_finite_are_refused(road, tmp_path):
    run = run_over(road, tmp_path)
    probe = Probe.of(run.trainee, run.method, run.train)
    with torch.no_grad():
        run.trainee.trained[0][0, 0] = torch.nan
    with pytest.raises(TrainingFailed, match="1 trained tensors hold values that are not finite"):
        refuse(run, probe)


def test_a_rate_too_small_for_the_weights_publishes_nothing(road, no_mlflow):
    recipe = tiny.recipe(learning_rate=1e-30, lora=None, epochs=1)
    with pytest.raises(TrainingFailed, match="exactly as its base model"):
        tiny.train_here(road.store, recipe, road.shards, road.base)


def test_early_stopping_publishes_the_weights_of_the_lowest_validation_loss(road, tmp_path):
    """A rate far too high: the validation loss rises again."""
    changes = {"learning_rate": 0.2, "epochs": 8, "evaluate_every_steps": 2, "schedule": "constant"}
    run = run_over(road, tmp_path / "a", early_stop_evaluations=2, keep_best=True, **changes)
    state = train(run)
    best = best_step(state.measured)
    assert state.step < run.schedule.steps and best == state.step - 4
    until = run_over(road, tmp_path / "b", keep=99, every_steps=1, **changes)
    train(until)
    saved = until.checkpoints.tensors_of(best)
    assert bytes_of(run) == {name: tensor.numpy().tobytes() for name, tensor in saved.items()}


def test_a_run_that_stopped_early_is_complete_and_says_which_step_it_published(road, no_mlflow):
    recipe = tiny.recipe(
        learning_rate=0.2, epochs=8, evaluate_every_steps=2, schedule="constant", early_stop_evaluations=2
    )
    made = tiny.train_here(road.store, recipe, road.shards, road.base)
    proof = read_completion(made)
    measured = {e["step"]: e["validation_loss"] for e in read_losses(made) if "validation_loss" in e}
    assert proof.stopped_early and shortfall(proof) is None and proof.steps < proof.planned_steps
    assert proof.published_step == best_step(measured) and proof.validation_loss == min(measured.values())
    assert json.loads(made.file("resume.json").read_text())["verdict"] == "not run"
