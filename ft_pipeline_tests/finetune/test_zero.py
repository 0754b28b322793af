"""DeepSpeed's ZeRO by placement: the same loss as one process, stopped and resumed bit for bit, resumed by another way of sharing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from ft_pipeline.finetune import main
from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.workers.job import Placement
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import ranked
from ft_pipeline_tests.finetune.test_parallel import (
    SAME,
    STOP_STEP,
    Trained,
    _left_after,
    _made,
    _run_entries,
    alone,
    difference,
    parents,  # noqa: F401 - a fixture
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ZERO_CASES = [(name, stage) for name in ("sft full", "sft lora", "dpo lora") for stage in ("zero1", "zero2", "zero3")]
STOPPED = [("sft full", "zero3"), ("sft lora", "zero2"), ("dpo lora", "zero1")]
OFFLOADED = [("sft full", "zero3", "parameters"), ("sft lora", "zero2", "optimizer")]


@pytest.fixture(scope="module")
def zeros(parents) -> Trained:  # noqa: F811
    """Every case trained whole, some stopped and resumed, some with states in host memory, one that diverges."""
    found = Trained(parents.folder, parts=parents.parts)
    entries = []
    for name, stage in ZERO_CASES:
        entries.append(_entry(found, (name, stage, "whole"), sharding=stage))
    for name, stage in STOPPED:
        stop = {"rank": 1, "step": STOP_STEP}
        entries.append(_entry(found, (name, stage, "halved"), stop=stop, sharding=stage, checkpointing="full"))
    for name, stage, what in OFFLOADED:
        entries.append(_entry(found, (name, stage, what), sharding=stage, offload=what))
    for stage in ("zero2", "zero3"):
        store = found.store("sft lora", stage, "diverges")
        job = found.job(store, "sft lora", {"learning_rate": 1e30}, processes=2, sharding=stage)
        entries.append(ranked.entry(job, store, "a", fails=True))
        found.lost[stage] = job
    _run_entries(parents.folder / "zero.json", entries)
    again = []
    for name, stage in STOPPED:
        job, halved = found.jobs[name, stage, "halved"], found.store(name, stage, "halved")
        found.stopped[name, stage] = [_left_after(job, rank) for rank in range(2)]
        shutil.copytree(halved.work.parent, found.store_root(name, stage, "fewer"))
        again.append(ranked.entry(job, halved, "b"))
    _run_entries(parents.folder / "zero-again.json", again)
    found.made = {where: _made(found.store(*where), job) for where, job in found.jobs.items()}
    return found


def _entry(found, where, *, stop=None, **placement):
    store = found.store(*where)
    found.jobs[where] = found.job(store, where[0], processes=2, **placement)
    return ranked.entry(found.jobs[where], store, "a", stop=stop)


@pytest.mark.parametrize(("name", "stage"), ZERO_CASES)
def test_two_processes_train_as_one_does_with_zero(zeros, name, stage):
    assert difference(zeros.made[name, stage, "whole"], alone(zeros, name)) < SAME


@pytest.mark.parametrize(("name", "stage", "what"), OFFLOADED)
def test_states_in_host_memory_change_no_loss(zeros, name, stage, what):
    assert difference(zeros.made[name, stage, what], zeros.made[name, stage, "whole"]) < SAME


@pytest.mark.parametrize(("name", "stage"), STOPPED)
def test_a_stop_at_one_process_is_resumed_bit_for_bit(zeros, name, stage):
    left = zeros.stopped[name, stage]
    assert STOP_STEP <= left[0] == left[1] < len(read_losses(zeros.made[name, stage, "whole"]))
    assert zeros.made[name, stage, "halved"].ref == zeros.made[name, stage, "whole"].ref


@pytest.mark.parametrize(("name", "stage"), STOPPED)
def test_one_process_without_deepspeed_ends_what_two_began(zeros, name, stage):
    store = zeros.store(name, stage, "fewer")
    job = zeros.jobs[name, stage, "halved"]
    inside = job.folder.relative_to(zeros.store(name, stage, "halved").work)
    job = replace(job, placement=Placement(threads=1), folder=store.work / inside)
    made = tiny._run_here(store, job, main.body)
    assert difference(made, zeros.made[name, stage, "whole"]) < SAME


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_loss_that_is_not_finite_is_diagnosed_by_both_processes(zeros, stage):
    import json

    job = zeros.lost[stage]
    told = [json.loads(next(f.glob("diagnosis*.json")).read_text()) for f in (job.folder, job.folder / "ranks" / "1")]
    assert told[0]["gradient_norms"] == told[1]["gradient_norms"] != []
