"""A rollout as tensors, kept while several updates are made on it, and as plain values that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ft_pipeline.encode.artifact import Window
from ft_pipeline.finetune.batches import Batch, batch_of
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.rollout import Completion

TENSORS = ("mask", "sampled", "advantages", "reference", "values", "returns")
"""Of a batch, kept as they are: all but the tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyBatch:
    """A rollout as tensors. S completions, T tokens of the longest; N completion tokens in a row."""

    rows: Batch
    lengths: list[int]
    prompts: int
    mask: torch.Tensor
    """[S, T] 1 for a token that counts: completions of a prompt that is skipped have none."""
    sampled: torch.Tensor
    """[S, T] log-probabilities when sampled."""
    advantages: torch.Tensor
    """[S], or [S, T] with a critic."""
    reference: torch.Tensor | None = None
    """[S, T] log-probabilities of the reference."""
    values: torch.Tensor | None = None
    """[S, T] of the value head when sampled."""
    returns: torch.Tensor | None = None
    """[S, T] what the value head should have said."""
    measured: torch.Tensor | None = None
    """Scalar: minus the sum of the rewards of greedy completions, in evaluation."""
    facts: dict[str, float] = field(default_factory=dict)
    """Means over the prompts of the rollout."""

    @property
    def tokens(self) -> int:
        """Real tokens of the training forward."""
        return self.rows.tokens


@dataclass
class Cycle:
    """The rollouts of `updates` optimizer steps, by place in a step: made in the first of them, used in all."""

    updates: int
    micros_per_step: int
    number: int = -1
    kept: dict[int, PolicyBatch] = field(default_factory=dict)

    def rollout(self, micro: int, made: Callable[[], PolicyBatch]) -> PolicyBatch:
        """The rollout of a global micro-batch; `made` draws it in the first step of a cycle."""
        step, place = divmod(micro, self.micros_per_step)
        number, update = divmod(step, self.updates)
        if number != self.number:
            self.number, self.kept = number, {}
        if update == 0:
            self.kept[place] = made()
        return self.kept[place]

    def memory(self, step: int) -> dict[str, Any]:
        """What the step after so many finished ones cannot draw again; nothing where it begins a cycle."""
        if step % self.updates == 0:
            return {}
        return {"places": sorted(self.kept), "rollouts": [_plain(self.kept[place]) for place in sorted(self.kept)]}

    def recall(self, trainee: Trainee, *, step: int, memory: Mapping[str, Any]) -> None:
        """Puts the rollouts of `memory(step)` back; forgets those of another run."""
        self.number = step // self.updates
        rollouts = zip(memory.get("places", ()), memory.get("rollouts", ()), strict=True)
        self.kept = {place: _batch(rollout, trainee) for place, rollout in rollouts}


def lines(flat: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """[N] as [S, T], zeros behind each line."""
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(list(lengths))), batch_first=True)


def padded(completions: Sequence[Completion], *, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[S, T] mask, and log-probabilities when sampled."""
    lengths = [len(c.ids) for c in completions]
    flat = torch.tensor([p for c in completions for p in c.logprobs], device=device)
    return lines(torch.ones_like(flat), lengths), lines(flat, lengths)


def _plain(batch: PolicyBatch) -> dict[str, Any]:
    """As tensors, numbers and lists. The tokens of all rows behind each other, int32; prompt and completion by their lengths."""
    whole = [length for line in batch.rows.lengths for length in line]
    flat = batch.rows.input_ids.cpu()
    ids = flat[0] if len(flat) == 1 else torch.cat([line[:n] for line, n in zip(flat, whole, strict=True)])
    tensors = {name: None if (t := getattr(batch, name)) is None else t.cpu() for name in TENSORS}
    return {
        "ids": ids[: sum(whole)].to(torch.int32), "rows": whole, "lengths": list(batch.lengths), "prompts": batch.prompts,
        "tensors": tensors, "facts": dict(batch.facts),
    }  # fmt: skip


def _batch(kept: Mapping[str, Any], trainee: Trainee) -> PolicyBatch:
    windows = []
    parts = kept["ids"].numpy().astype(np.int32)
    for ids, length in zip(np.split(parts, np.cumsum(kept["rows"])[:-1]), kept["lengths"], strict=True):
        windows.append(Window(ids=ids, spans=((len(ids) - length, len(ids)),), lengths=(len(ids),), row_ids=("",)))
    tensors: dict[str, Any] = {name: None if t is None else t.to(trainee.device) for name, t in kept["tensors"].items()}
    return PolicyBatch(
        rows=batch_of(windows, flat=trainee.flat, device=trainee.device), lengths=list(kept["lengths"]),
        prompts=kept["prompts"], facts=dict(kept["facts"]), **tensors,
    )  # fmt: skip
