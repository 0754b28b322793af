"""What is not finite ends the run with a diagnosis that names the rows; what jumps is told, or stops the run when the recipe says so."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.watch import Spikes
from ft_pipeline_tests.runs import run_over


class Poisoned:
    """A method whose loss is NaN in one micro-batch."""

    def __init__(self, method, micro: int) -> None:
        self.method, self.left = method, micro

    def __getattr__(self, name):
        return getattr(self.method, name)

    def loss(self, trainee, batch):
        made = self.method.loss(trainee, batch)
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left == -1:
                return Loss(total=made.total * torch.nan)
        return made


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 1e30, "warmup_share": 0.0}, {"learning_rate": 1e30, "lora": None}]
)
def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_the_cure(road, tmp_path, changes):
    run = run_over(road, tmp_path, **changes)
    with pytest.raises(TrainingFailed, match=r"step \d+: loss .* the diagnosis is .*diagnosis.json") as stopped:
        train(run)
    assert "learning_rate" in stopped.value.cure and stopped.value.exit_code == 42
    told = json.loads((run.metrics.folder / "diagnosis.json").read_text())
    assert told["loss"] in ("nan", "inf") or told["grad_norm"] in ("nan", "inf")


def test_the_diagnosis_names_the_rows_of_the_broken_micro_batch_and_the_last_good_checkpoint(road, tmp_path):
    run = run_over(road, tmp_path, every_steps=2)
    object.__setattr__(run, "method", Poisoned(run.method, micro=9))  # the second of step 5
    with pytest.raises(TrainingFailed, match="step 5: loss nan"):
        train(run)
    told = json.loads((run.metrics.folder / "diagnosis.json").read_text())
    assert (told["step"], told["last_good_checkpoint"], told["attempt"]) == (5, "step-00000004", 1)
    assert told["learning_rate"] == run.schedule.learning_rate(4) and len(told["losses_before"]) == 4
    good, bad = told["micro_batches"]
    assert [good["number"], bad["number"]] == [8, 9] and bad["loss"] == "nan" and isinstance(good["loss"], float)
    assert bad["row_ids"] == [row for i in run.schedule.windows_of(9) for row in run.train[i].row_ids]
    assert len(told["gradient_norms"]) == 10 and told["gradient_norms"][0]["norm"] == "nan"
    assert all(".lora_" in entry["module"] for entry in told["gradient_norms"])


def test_the_modules_with_the_largest_gradients_are_told_when_only_some_are_broken(road, tmp_path):
    run = run_over(road, tmp_path, lora=None)
    parameter = next(p for n, p in run.trainee.model.named_parameters() if "layers.1.mlp.up_proj" in n)
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingFailed, match="step 1: loss"):
        train(run)
    told = json.loads((run.metrics.folder / "diagnosis.json").read_text())["gradient_norms"]
    assert "layers.1.mlp.up_proj" in told[0]["module"] and told[0]["norm"] in ("inf", "nan")
    rest = [entry["norm"] for entry in told[1:]]
    assert rest == sorted(rest, reverse=True) and all(isinstance(norm, float) for norm in rest)


def test_a_validation_loss_that_is_not_finite_stops_the_run(road, tmp_path):
    run = run_over(road, tmp_path, epochs=1)
    with torch.no_grad():
        run.trainee.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(TrainingFailed, match=r"validation after step 0: loss nan; the diagnosis is"):
        train(run)
    assert json.loads((run.metrics.folder / "diagnosis.json").read_text())["validation_loss"] == "nan"


def faults(losses: list[float], planned: int = 100) -> list[tuple[int, str]]:
    spikes = Spikes(planned)
    found = [(n, spikes.fault(loss)) for n, loss in enumerate(losses)]
    return [(n, fault) for n, fault in found if fault]


def test_five_losses_in_a_row_of_twice_the_mean_are_a_spike():
    told = faults([1.0] * 100 + [2.5] * 5)
    assert [n for n, _ in told] == [104] and "loss spike: 2.5" in told[0][1]
    assert not faults([1.0] * 100 + [2.5] * 4 + [1.0] * 20)
    assert not faults([1.0] * 99 + [2.5] * 5)  # the window is not full yet


def test_a_loss_that_stays_above_the_cap_is_told_after_two_windows():
    told = faults([11.0] * 300)
    assert told[0][0] == 200 and "persistently high loss" in told[0][1]
    assert not faults([9.0] * 300)


def test_the_window_is_a_twentieth_of_a_long_run():
    assert Spikes(10_000).window == 500 and Spikes(50).window == 100


@given(st.lists(st.floats(0.1, 20), max_size=300), st.integers(0, 300))
def test_a_resumed_run_sees_the_same_spikes(losses, cut):
    """The detector is fed the whole trajectory on resume."""
    whole, again = Spikes(100), Spikes(100)
    expected = [whole.fault(loss) for loss in losses]
    for loss in losses[:cut]:
        again.fault(loss)
    assert [again.fault(loss) for loss in losses[cut:]] == expected[cut:]


@pytest.mark.parametrize("on_loss_spike", ["warn", "stop"])
def test_a_spike_is_told_or_stops_the_run(road, tmp_path, monkeypatch, on_loss_spike):
    monkeypatch.setattr("ft_pipeline.finetune.watch.LEAST_WINDOW", 4)
    monkeypatch.setattr("ft_pipeline.finetune.watch.MULTIPLIER", 0.1)
    said = []
    run = run_over(road, tmp_path, listener=said.append, on_loss_spike=on_loss_spike)
    if on_loss_spike == "stop":
        with pytest.raises(TrainingFailed, match=r"step 9: loss spike"):
            train(run)
    else:
        assert train(run).step == run.schedule.steps
    assert any(m.facts.get("spike") for m in said)
