"""The training loop: it learns, packing and accumulation change nothing, what is not finite stops it, a stop loses nothing."""

from __future__ import annotations

import json

import pytest
import torch

from ft_pipeline.errors import Interrupted
from ft_pipeline.finetune.batches import batch_of, single_rows
from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.methods.causal import loss_sum, token_losses
from ft_pipeline.recipe import Lora
from ft_pipeline_tests.runs import Asked, bytes_of, run_over


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None, Lora(rank=4, alpha=8, dora=True)])
def test_training_lowers_the_validation_loss_and_changes_what_it_should(road, tmp_path, lora):
    run = run_over(road, tmp_path, lora=lora, epochs=4)
    before = bytes_of(run)
    state = train(run)
    assert state.validations[str(state.step)] < state.validations["0"] - 0.3
    assert [e["step"] for e in state.losses] == list(range(1, run.schedule.steps + 1))
    changed = {name for name, content in bytes_of(run).items() if content != before[name]}
    assert changed == set(before) and (lora is None or all("lora_" in n for n in changed))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(road, tmp_path):
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        run = run_over(road, tmp_path / name, seed=seed, epochs=1)
        train(run)
        made.append(bytes_of(run))
    assert made[0] == made[1] != made[2]


def test_one_large_micro_batch_equals_eight_small_ones(road, tmp_path):
    runs = []
    for size in (8, 1):
        run = run_over(road, tmp_path, windows_per_micro=size)
        section = run.schedule.section
        batches = [run.train[i : i + size] for i in range(0, 8, size)]
        trained = sum(w.trained_tokens for w in run.train[:8])
        for windows in batches:
            (loss_sum(run.trainee.model, batch_of(windows, flat=True)) / trained).backward()
        runs.append([p.grad.clone() for p in run.trainee.trained if p.grad is not None])
        assert section.windows_per_step == 8
    assert len(runs[0]) == len(runs[1]) > 0
    assert max(float((a - b).abs().max()) for a, b in zip(*runs, strict=True)) < 1e-6


@pytest.mark.parametrize("flat", [True, False])
def test_packed_rows_have_the_losses_that_they_have_alone(road, tmp_path, flat):
    run = run_over(road, tmp_path)
    if not flat:
        run.trainee.model.set_attn_implementation("sdpa")
    windows = run.train[:4]
    with torch.no_grad():
        packed = token_losses(run.trainee.model, batch_of(windows, flat=flat))
        alone = torch.cat(
            [token_losses(run.trainee.model, batch_of([row], flat=flat)) for w in windows for row in single_rows(w)]
        )
    assert float((packed - alone).abs().max()) < 1e-5


def test_dropout_is_reproduced_after_a_resume(road, tmp_path):
    lora = Lora(rank=4, alpha=8, dropout=0.2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_over(road, tmp_path / "a", lora=lora)
    expected = train(whole)
    with pytest.raises(Interrupted, match="stopped after step"):
        train(run_over(road, tmp_path / "b", lora=lora, stop=Asked(after=12)))
    resumed = run_over(road, tmp_path / "b", lora=lora)
    state = train(resumed)
    assert 0 < resumed.metrics.first_step < whole.schedule.steps
    assert state == expected and bytes_of(resumed) == bytes_of(whole)


def test_a_damaged_newest_checkpoint_is_set_aside_with_a_message(road, tmp_path):
    said = []
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_over(road, tmp_path / "a")
    expected = train(whole)
    with pytest.raises(Interrupted):
        train(run_over(road, tmp_path / "b", every_steps=2, stop=Asked(after=11)))
    newest = sorted((tmp_path / "b" / "run" / "checkpoints").glob("step-*"))[-1]
    content = bytearray((newest / "trained.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "trained.safetensors").write_bytes(content)
    resumed = run_over(road, tmp_path / "b", listener=said.append)
    assert train(resumed) == expected and bytes_of(resumed) == bytes_of(whole)
    assert any(newest.name in m.text and "trained.safetensors was changed" in m.text for m in said)


def test_metrics_are_on_disk_line_by_line(road, tmp_path):
    run = run_over(road, tmp_path, epochs=1)
    train(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, run.schedule.steps + 1))
    assert all(line["attempt"] == 1 and line["tokens_per_second"] > 0 for line in lines)
