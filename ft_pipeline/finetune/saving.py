"""Saves a run while it trains on: the training thread only copies, another thread serialises, hashes and writes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from ft_pipeline.finetune.checkpoint import Checkpoints, State
from ft_pipeline.finetune.metrics import Saved
from ft_pipeline.workers.messages import tell_state


@dataclass
class Saver:
    """At most one checkpoint is being written. What goes wrong there is raised at the next call of any method here."""

    checkpoints: Checkpoints
    told: Callable[[Saved], None]
    """Hears what each checkpoint cost once it is whole; called on the training thread."""
    background: bool = True
    _running: Future[tuple[float, int]] | None = None
    _begun: int = 0
    """Step of the one that is being written."""
    _stall: float = 0.0
    """In which it has kept the training thread from training."""
    _copies: _Copies = field(default_factory=lambda: _Copies())
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))

    def save(self, state: State, tensors: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]) -> None:
        """Begins a checkpoint of these values as they are now. Waits for the one before. Raises StorageError of either."""
        self.settle()
        started = time.monotonic()
        copied, state = self._copies.of({"tensors": dict(tensors), "optimizer": dict(optimizer)}), state.copy()
        self.checkpoints.begin(state.step)
        tell_state(self.checkpoints.listener, "checkpointing", step=state.step)
        self._running = self._thread.submit(self._write, state, copied["tensors"], copied["optimizer"])
        if not self.background:
            self._running.exception()
        self._begun, self._stall = state.step, time.monotonic() - started

    def look(self, step: int) -> None:
        """After each step: takes note of a checkpoint that has become whole, waits for one that is late.

        Raises StorageError of one that failed.
        """
        if self._running is not None and (self._running.done() or self.checkpoints.overdue(step)):
            self.settle()
            self.checkpoints.lead_steps = step - self._begun

    def settle(self) -> None:
        """Waits until nothing is being written. Raises StorageError."""
        running, self._running = self._running, None
        if running is None:
            return
        started = time.monotonic()
        seconds, size = running.result()
        self.checkpoints.lead_seconds = seconds
        stall = self._stall + time.monotonic() - started
        self.told(Saved(step=self._begun, stall_seconds=stall, write_seconds=seconds, size=size))

    def close(self) -> None:
        """Waits for the last write on the way out; why the run ends matters more than how that write went."""
        with contextlib.suppress(Exception):
            self.settle()
        self._thread.shutdown()

    def _write(self, state: State, tensors: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> tuple[float, int]:
        started = time.monotonic()
        size = self.checkpoints.save(state, tensors, optimizer)
        return time.monotonic() - started, size


@dataclass
class _Copies:
    """Memory for one checkpoint, kept between saves: pinned where the tensors are on a GPU, so that copying is fast."""

    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    pinned: bool = False

    def of(self, value: Any) -> Any:
        """The value with every tensor copied to the CPU. Valid until the next call."""
        copied = self._of(value, "")
        if self.pinned:
            torch.cuda.synchronize()
        return copied

    def _of(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), path)
        if isinstance(value, Mapping):
            return {key: self._of(inner, f"{path}/{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._of(inner, f"{path}/{n}") for n, inner in enumerate(value))
        return value

    def _tensor(self, tensor: torch.Tensor, path: str) -> torch.Tensor:
        buffer = self.memory.get(path)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
            self.memory[path] = buffer
            self.pinned = self.pinned or tensor.is_cuda
        return buffer.copy_(tensor, non_blocking=True)
