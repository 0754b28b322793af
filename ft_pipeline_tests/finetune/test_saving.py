"""Saving beside training: the same bytes as without, one write at a time, a full disk ends the run with exit 5, the cost is told."""

from __future__ import annotations

import errno
import json
import threading
import time

import pytest
import torch

from ft_pipeline.errors import Interrupted, StorageError
from ft_pipeline.finetune import checkpoint
from ft_pipeline.finetune.checkpoint import Checkpoints, State, damage
from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.saving import Saver
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests.runs import Asked, bytes_of, run_over

pytestmark = pytest.mark.slow


@pytest.fixture
def slow_writes(monkeypatch):
    """Every checkpoint takes .2 s longer to write."""
    write = checkpoint._write_optimizer
    monkeypatch.setattr(checkpoint, "_write_optimizer", lambda *args: (time.sleep(0.2), write(*args))[1])


def a_saver(folder, **changes) -> tuple[Saver, list]:
    told = []
    return Saver(Checkpoints(folder, "f" * 64, ignore, keep=9, **changes), told.append), told


def test_a_checkpoint_holds_the_values_of_the_moment_in_which_it_was_begun(tmp_path, slow_writes):
    saver, told = a_saver(tmp_path)
    weight, moment = torch.ones(3), torch.full((3,), 2.0)
    state = State(step=1, losses=[{"step": 1, "loss": 0.5}])
    saver.save(state, {"w": weight}, {"state": {0: {"exp_avg": moment}}, "param_groups": [{"lr": 0.1}]})
    weight.zero_()
    moment.zero_()
    state.losses[-1]["validation_loss"] = 0.25
    state.losses.append({"step": 2, "loss": 0.4})
    saver.settle()
    kept, tensors, optimizer = saver.checkpoints.load(tmp_path / "step-00000001")
    assert kept == State(step=1, losses=[{"step": 1, "loss": 0.5}])
    assert tensors["w"].tolist() == [1, 1, 1] and optimizer["state"][0]["exp_avg"].tolist() == [2, 2, 2]
    assert told[0].step == 1 and told[0].write_seconds > 0.2 and told[0].size > 0
    saver.close()


def test_one_write_at_a_time_and_in_order(tmp_path, slow_writes):
    saver, told = a_saver(tmp_path)
    at_work = []
    for step in (1, 2, 3):
        saver.save(State(step=step), {"w": torch.ones(1)}, {})
        at_work.append(sum(thread.name.startswith("checkpoint") for thread in threading.enumerate()))
    saver.close()
    assert at_work == [1, 1, 1] and [t.step for t in told] == [1, 2, 3]
    assert all(damage(folder) is None for folder in tmp_path.glob("step-*"))


@pytest.mark.parametrize("lora", [..., None])
def test_the_bytes_are_those_of_saving_while_training_waits(road, tmp_path, lora):
    made = []
    for background in (True, False):
        changes = {} if lora is ... else {"lora": lora}
        run = run_over(road, tmp_path / str(background), background=background, every_steps=2, keep=99, **changes)
        state = train(run)
        files = {
            f"{f.parent.name}/{f.name}": f.read_bytes()
            for f in run.checkpoints.folder.rglob("*")
            if f.suffix in (".safetensors", ".json") and f.name != "manifest.json"
        }
        made.append((state, bytes_of(run), {n: c for n, c in files.items() if n in ("state.json",)}))
        assert len(run.metrics.saves) > 3
    assert made[0] == made[1]


def test_a_stop_settles_the_running_write_and_saves_what_is_missing(road, tmp_path, slow_writes):
    whole = run_over(road, tmp_path / "a")
    expected = train(whole)
    with pytest.raises(Interrupted):
        train(run_over(road, tmp_path / "b", every_steps=5, stop=Asked(after=0.6 * whole.stop.questions)))
    resumed = run_over(road, tmp_path / "b")
    assert not list(resumed.checkpoints.folder.glob(".*.tmp"))
    assert train(resumed) == expected and bytes_of(resumed) == bytes_of(whole)
    assert resumed.metrics.facts()["steps_replayed"] == 0


def test_a_kill_loses_the_interval_at_most_however_slow_the_disk(road, tmp_path, slow_writes):
    """What is at risk after each step: the steps since the newest whole checkpoint."""
    run = run_over(road, tmp_path, every_steps=3, epochs=3)
    at_risk, stepped = [], run.metrics.stepped

    def watched(entry, **facts):
        at_risk.append(entry["step"] - max(run.checkpoints.steps(), default=0))
        stepped(entry, **facts)

    run.metrics.stepped = watched
    train(run)
    assert max(at_risk) == 3


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_ends_the_run_as_a_storage_error_with_the_checkpoint_before(
    road, tmp_path, monkeypatch, background
):
    write, calls = checkpoint._write_optimizer, []

    def second_fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args)

    monkeypatch.setattr(checkpoint, "_write_optimizer", second_fails)
    whole = run_over(road, tmp_path / "a")
    expected = train(whole)
    run = run_over(road, tmp_path / "b", every_steps=2, background=background)
    with pytest.raises(StorageError, match="no space left while writing checkpoint step-") as full:
        train(run)
    assert full.value.exit_code == 5 and run.checkpoints.steps() == [2]
    resumed = run_over(road, tmp_path / "b")
    assert train(resumed) == expected and bytes_of(resumed) == bytes_of(whole)


def test_torch_on_a_full_disk_is_a_full_disk(tmp_path, monkeypatch):
    """torch.save says `unexpected pos` and hides the errno."""

    def full(_self, _data):
        error = OSError(errno.ENOSPC, "No space left on device")
        _self.failure = error
        raise error

    monkeypatch.setattr(checkpoint._Hashed, "write", full)
    with pytest.raises(StorageError, match="no space left"):
        Checkpoints(tmp_path, "f" * 64, ignore).save(State(step=1), {"w": torch.ones(1)}, {"a": torch.ones(1000)})
    assert not list(tmp_path.iterdir())


def test_what_checkpoints_cost_is_written_down(road, tmp_path):
    run = run_over(road, tmp_path, every_steps=2)
    train(run)
    lines = [json.loads(line) for line in (run.metrics.folder / "saves.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines}) and len(lines) >= 3
    assert all(line["checkpoint_stall_seconds"] > 0 and line["checkpoint_bytes"] > 1000 for line in lines)
    facts = run.metrics.facts()
    assert facts["checkpoints"] == len(lines) and 0 < facts["checkpoint_stall_share"] < 1
