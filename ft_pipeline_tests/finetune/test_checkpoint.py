"""Checkpoints: whole or not there, never overwritten, the newest whole one wins, the disk may be full."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from ft_pipeline.errors import DriftError, StorageError
from ft_pipeline.finetune.checkpoint import Checkpoints, State, damage
from ft_pipeline.workers.messages import ignore

STATE = State(step=1, losses=[{"step": 1, "loss": 0.1 + 0.2}], validations={"0": 1 / 3})
TENSORS = {"a": torch.arange(4.0), "b": torch.full((2, 2), 1 / 3)}
OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.randn(4)}}, "param_groups": [{"lr": 1e-3}]}


def checkpoints(folder: Path, **changes) -> Checkpoints:
    return Checkpoints(folder, "f" * 64, changes.pop("listener", ignore), **changes)


def saved(folder: Path, *steps: int) -> Checkpoints:
    kept = checkpoints(folder, keep=9)
    for step in steps:
        kept.save(State(step=step), TENSORS, OPTIMIZER)
    return kept


def test_what_is_loaded_is_what_was_saved_to_the_last_bit(tmp_path):
    kept = checkpoints(tmp_path)
    kept.save(STATE, TENSORS, OPTIMIZER)
    state, tensors, optimizer = checkpoints(tmp_path).load(kept.newest_whole())
    assert state == STATE
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert torch.equal(optimizer["state"][0]["exp_avg"], OPTIMIZER["state"][0]["exp_avg"])


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["missing", "cut short", "changed"])
def test_any_damage_to_the_newest_falls_back_to_the_one_before(tmp_path, name, how):
    said = []
    kept = saved(tmp_path, 1, 2)
    victim = tmp_path / "step-00000002" / name
    content = victim.read_bytes()
    if how == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[: len(content) // 2] if how == "cut short" else b"\x00" + content[1:])
    kept.listener = said.append
    assert kept.newest_whole().name == "step-00000001"
    assert "step-00000002 is damaged" in said[0].text
    kept.save(State(step=2), TENSORS, OPTIMIZER)
    assert damage(kept.newest_whole()) is None and kept.newest_whole().name == "step-00000002"


def test_a_half_written_checkpoint_does_not_exist(tmp_path):
    kept = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.abcd.tmp")
    assert kept.newest_whole().name == "step-00000001"
    assert not list(tmp_path.glob(".*.tmp"))


def test_two_are_kept_even_when_one_is_asked_for(tmp_path):
    kept = checkpoints(tmp_path, keep=1)
    for step in range(1, 5):
        kept.save(State(step=step), TENSORS, OPTIMIZER)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(DriftError, match="is a checkpoint of run ffff"):
        Checkpoints(tmp_path, "0" * 64, ignore).newest_whole()


def test_a_full_disk_fails_the_save_with_the_cure_and_leaves_the_one_before(tmp_path, monkeypatch):
    kept = saved(tmp_path, 1)

    def no_space(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(StorageError, match="no space left while writing checkpoint step-00000002"):
        kept.save(State(step=2), TENSORS, OPTIMIZER)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert damage(tmp_path / "step-00000001") is None


def test_a_step_is_never_overwritten(tmp_path):
    kept = saved(tmp_path, 1)
    before = json.loads((tmp_path / "step-00000001" / "manifest.json").read_bytes())
    with pytest.raises(OSError, match=r"not empty|exists"):
        kept.save(State(step=1, validations={"1": 1.0}), TENSORS, OPTIMIZER)
    assert json.loads((tmp_path / "step-00000001" / "manifest.json").read_bytes()) == before


def test_saves_are_due_by_steps_or_by_minutes(tmp_path):
    kept = checkpoints(tmp_path, every_steps=10)
    assert not kept.due(9) and kept.due(10)
    assert checkpoints(tmp_path, every_seconds=0).due(1)
    assert not checkpoints(tmp_path, every_seconds=0).due(0)
