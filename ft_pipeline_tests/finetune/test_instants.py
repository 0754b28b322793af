"""A stop loses no step, whatever the trainer is doing when the signal comes; what is resumed ends in the same bytes."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ft_pipeline.errors import Interrupted
from ft_pipeline.finetune import checkpoint
from ft_pipeline.finetune.loop import train
from ft_pipeline.workers.preemption import StopRequest, listen, stop_request
from ft_pipeline_tests.runs import Asked, bytes_of, run_over

INSTANTS = ["forward", "backward", "optimizer step", "evaluation", "checkpoint write"]


@pytest.fixture(scope="module")
def whole(road, tmp_path_factory):
    """An uninterrupted run and its state."""
    run = run_over(road, tmp_path_factory.mktemp("whole"), epochs=3)
    return run, train(run)


@pytest.fixture
def signals():
    """Puts the handlers of this process back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Signalling:
    """A method that sends SIGTERM to its own process in the middle of its work, once."""

    def __init__(self, method, instant: str, at: int) -> None:
        self.method, self.instant, self.left = method, instant, at

    def __getattr__(self, name):
        return getattr(self.method, name)

    def reached(self, instant: str) -> None:
        if instant == self.instant:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    def loss(self, trainee, batch):
        self.reached("forward" if torch.is_grad_enabled() else "evaluation")
        made = self.method.loss(trainee, batch)
        if torch.is_grad_enabled():
            made.total.register_hook(lambda _gradient: self.reached("backward"))
        return made


@contextmanager
def planted(monkeypatch, method: Signalling):
    """SIGTERM inside an optimizer step or in the thread that writes a checkpoint."""
    write = checkpoint._write_optimizer

    def writing(*args):
        method.reached("checkpoint write")
        return write(*args)

    monkeypatch.setattr(checkpoint, "_write_optimizer", writing)
    hook = register_optimizer_step_pre_hook(lambda *_: method.reached("optimizer step"))
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("instant", INSTANTS)
def test_sigterm_is_saved_at_the_next_step_boundary(road, tmp_path, whole, instant, at, monkeypatch, signals):
    run = run_over(road, tmp_path, epochs=3, every_steps=2, stop=StopRequest())
    method = Signalling(run.method, instant, at)
    object.__setattr__(run, "method", method)
    with planted(monkeypatch, method), pytest.raises(Interrupted) as stopped:
        train(run)
    assert stopped.value.exit_code == 75
    lines = run.metrics.folder / "metrics.jsonl"
    made = lines.read_bytes().count(b"\n") if lines.is_file() else 0
    assert max(run.checkpoints.steps(), default=0) == made
    resumed = run_over(road, tmp_path, epochs=3)
    assert train(resumed) == whole[1] and bytes_of(resumed) == bytes_of(whole[0])
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == list(range(1, whole[0].schedule.steps + 1))


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.8, 0.97])
def test_a_stop_at_any_moment_loses_no_step_and_ends_in_the_same_bytes(road, tmp_path, whole, share):
    with pytest.raises(Interrupted):
        train(run_over(road, tmp_path, epochs=3, stop=Asked(after=share * whole[0].stop.questions)))
    resumed = run_over(road, tmp_path, epochs=3)
    assert train(resumed) == whole[1] and bytes_of(resumed) == bytes_of(whole[0])
    assert resumed.metrics.facts()["steps_replayed"] == 0


def test_a_signal_during_the_imports_is_heard_by_the_body_that_starts_later(signals):
    listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop_request().asked
    assert not stop_request().asked
