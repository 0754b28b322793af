"""torch.compile by placement: the same losses to the order of additions, and a clear word where nothing can compile."""

from __future__ import annotations

import pytest
import torch

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.batches import batch_of
from ft_pipeline.finetune.compatibility import refuse_incompatible
from ft_pipeline.finetune.compiling import compile_layers
from ft_pipeline.finetune.loop import make_deterministic
from ft_pipeline.finetune.methods.causal import loss_sum
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.parallel import World
from ft_pipeline.workers.job import Placement
from ft_pipeline_tests import tiny


def trajectory(road, **world) -> list[float]:
    """Loss and gradient norm of some steps over batches of different lengths."""
    make_deterministic(1)
    trainee = load_trainee(road.base.folder, tiny.recipe(lora=None).finetune)
    updates, told = World(**world).spread(trainee), []
    trainee.model.train()
    windows = list(read_windows(road.shards, "train"))
    for step in range(3):
        loss = loss_sum(trainee.model, batch_of(windows[step : 2 * step + 2], flat=trainee.flat)) / 100
        updates.backward(loss, last=True)
        norm = updates.norm()
        told += [float(loss.detach()), float(norm)]
        updates.step(norm, 1e-3)
    return told


@pytest.mark.slow
def test_compiled_layers_train_as_they_are_written_also_when_they_forget(road, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    plain = trajectory(road)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = trajectory(road, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert trajectory(road, compile=True, checkpointing="full") == pytest.approx(plain, rel=1e-5)


def test_a_machine_without_a_compiler_is_told_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"has not a C\+\+ compiler") as refused:
        compile_layers([], device="cpu")
    assert "compile: false" in refused.value.cure


@pytest.mark.parametrize(
    ("place", "cure"),
    [({"sharding": "zero3", "processes": 2}, "fsdp"), ({"checkpointing": "selective"}, "full or none")],
)
def test_what_a_compiler_would_see_in_pieces_is_refused(place, cure):
    with pytest.raises(RecipeError, match="compile") as refused:
        refuse_incompatible(tiny.recipe(), Placement(compile=True, **place))
    assert cure in refused.value.cure
