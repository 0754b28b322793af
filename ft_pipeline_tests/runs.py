"""Runs of the training loop in this process, over shards of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.finetune.checkpoint import Checkpoints
from ft_pipeline.finetune.loop import Run, make_deterministic
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.metrics import Metrics
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests import tiny


class Asked:
    """A stop request that is asked for after so many questions."""

    def __init__(self, after: float = 1 << 30) -> None:
        self.after, self.questions = after, 0

    @property
    def asked(self) -> bool:
        self.questions += 1
        return self.questions > self.after


def run_over(
    road: Any, folder: Path, *, stop: Any = None, listener: Any = ignore, background: bool = True, **changes: Any
) -> Run:
    """A run over the windows of a Road in `folder/run`. Changes: fields of Checkpoints, else of the recipe's section."""
    names = ("keep", "every_steps", "every_seconds", "keep_best", "keep_every")
    saves = {name: changes.pop(name) for name in names if name in changes}
    section = tiny.recipe(**changes).finetune
    windows = list(read_windows(road.shards, "train"))
    make_deterministic(2)
    schedule = Schedule(section=section, windows=len(windows))
    place = folder / "run"
    place.mkdir(exist_ok=True, parents=True)
    return Run(
        trainee=load_trainee(road.base.folder, section), method=method_of(section, cache=place / "windows"),
        schedule=schedule, train=windows, validation=list(read_windows(road.shards, "validation")),
        checkpoints=Checkpoints(place / "checkpoints", "f" * 64, listener, **saves),
        metrics=Metrics(folder=place, steps=schedule.steps, listener=listener), stop=stop or Asked(),
        save_in_background=background,
    )  # fmt: skip


def bytes_of(run: Run) -> dict[str, bytes]:
    """The trained tensors."""
    return {name: tensor.numpy().tobytes() for name, tensor in run.trainee.tensors().items()}
