"""Operations of a step against torch's own counter, and the shares of a peak."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.finetune.batches import batch_of, single_rows
from ft_pipeline.finetune.flops import Work, peak_of, step_flops, utilisation
from ft_pipeline.finetune.methods.causal import loss_sum
from ft_pipeline.finetune.model import load_trainee, work_of
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny

EIGHT = Work(matmul=7_504_658_432, head=525_336_576, layers=32, width=4096)
"""Llama-3-8B."""


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_a_step_has_the_operations_that_torch_counts(road, lora):
    trainee = load_trainee(road.base.folder, tiny.recipe(lora=lora).finetune)
    rows = [row for w in read_windows(road.shards, "train") for row in single_rows(w)][:8]
    batch = batch_of(rows, flat=True)
    with FlopCounterMode(display=False) as counter:
        loss_sum(trainee.model, batch).backward()
    lengths = [n for line in batch.lengths for n in line]
    work = work_of(trainee)
    said = step_flops(work, lengths, predicted=len(batch.predict))
    # torch counts attention as if it were not causal, and over the padding of our stacks
    without = 12 * work.layers * work.width * sum(n * n for n in lengths) / 2
    scores = sum(v for g in counter.get_flop_counts()["Global"].items() if "attention" in str(g[0]) for v in [g[1]])
    counted = counter.get_total_flops() - scores
    linear = said.model - without
    # the first layer's queries, keys and values pass no gradient on to a frozen embedding
    spared = 2 * sum(lengths) * (64 * 64 + 2 * 64 * 32) if lora else 0
    assert counted == pytest.approx(linear - spared, rel=0.02)


def test_frozen_weights_cost_two_thirds_and_checkpointing_a_third_more():
    lengths = [4096, 1000]
    full = step_flops(EIGHT, lengths)
    adapter = step_flops(Work(matmul=EIGHT.matmul, head=EIGHT.head, layers=32, width=4096, lora=41_943_040), lengths)
    again = step_flops(EIGHT, lengths, recomputed=1.0)
    assert full.six_n == 6 * EIGHT.matmul * 5096 == adapter.six_n
    assert 0.66 < adapter.model / full.model < 0.72
    assert again.model == full.model and 1.30 < again.hardware / again.model < 1.34
    assert step_flops(EIGHT, lengths, predicted=0).model == full.model - 6 * EIGHT.head * 5096


def test_the_note_says_as_many_operations_a_token_for_8b_at_4k():
    """Design note finetune: 48.25 GF a token full, 33.5 LoRA r16, and 12,300 and 17,700 tokens a second at 60%."""
    full = step_flops(EIGHT, [4096])
    lora = step_flops(Work(matmul=EIGHT.matmul, head=EIGHT.head, layers=32, width=4096, lora=41_943_040), [4096])
    assert full.model / 4096 == pytest.approx(48.25e9, rel=0.01)
    assert lora.model / 4096 == pytest.approx(33.5e9, rel=0.01)
    for flops, speed in ((full, 12_300), (lora, 17_700)):
        told = utilisation(flops, seconds=4096 / speed, peak=peak_of("NVIDIA H100 80GB HBM3"))
        assert told["mfu"] == pytest.approx(0.60, abs=0.005)


def test_a_gpu_is_known_by_its_name_and_a_cpu_has_no_mfu():
    names = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989.5e12, "NVIDIA H200": 989.5e12, "NVIDIA A100-SXM4-40GB": 312e12,
             "NVIDIA H100 NVL": 835e12, "NVIDIA L40S": 362e12}  # fmt: skip
    assert {name: peak_of(name) for name in names} == names
    assert peak_of("NVIDIA A10G") == 70e12
    assert peak_of("AMD EPYC") is None and utilisation(step_flops(EIGHT, [8]), seconds=1, peak=None) == {}
