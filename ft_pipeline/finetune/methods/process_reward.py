"""process_reward: a score at the end of each step of a solution, the log-odds that the step is right.

One number and a sigmoid, where TRL's former PRMTrainer has two classes: softmax over two is the sigmoid of their difference. The step
is judged at the last token of the separator behind it, as there, and after each step as in arXiv 2211.14275 and 2305.20050.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ft_pipeline.encode.artifact import CachedWindows, Window, example_kind, read_stepwise
from ft_pipeline.finetune.batches import Batch, batch_of
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.score import scores
from ft_pipeline.recipe import Finetune
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.files import beside, sync_file

BLOCK_ROWS = 256
"""Rows of a record batch of the cache, and all that is in memory while it is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped(Window):
    """A solution as a window of one row. Its spans are the judged tokens, one a step."""

    labels: tuple[bool, ...] = ()
    """Whether each step is right."""


class SteppedRows(Sequence[Stepped]):
    """The solutions of a split, token ids mapped from a file: a byte a step in memory."""

    def __init__(self, path: Path) -> None:
        self._windows = CachedWindows(path)
        self._labels, self._starts = _labels(path)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        window = self._windows[int(place)]
        place = int(place) % len(self)
        return Stepped(
            ids=window.ids, spans=window.spans, lengths=window.lengths, row_ids=window.row_ids,
            labels=tuple(self._labels[self._starts[place] : self._starts[place + 1]].tolist()),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SteppedBatch:
    """Solutions of one forward pass."""

    rows: Batch
    labels: torch.Tensor
    """[N] bool, of all steps in the order of the rows."""
    tokens: int

    @property
    def ends(self) -> torch.Tensor:
        """[N] places in the flattened batch where the steps are judged."""
        return self.rows.predict + 1


@dataclass(frozen=True, kw_only=True)
class ProcessReward:
    """Binary cross-entropy of each step. A step counts 1 in the mean of an optimizer step, as in TRL's token classification."""

    cache: Path

    def items(self, shards: Artifact, split: str) -> SteppedRows:
        """Solutions with their judged steps."""
        path = self.cache / f"{shards.ref.digest[:32]}-{split}-steps.arrow"
        if not path.is_file():
            _write_cache(path, shards, split)
        return SteppedRows(path)

    def weight(self, item: Stepped) -> float:
        """Its steps."""
        return float(len(item.labels))

    def batch(self, trainee: Trainee, items: Sequence[Stepped]) -> SteppedBatch:
        """Solutions back to back."""
        rows = batch_of(items, flat=trainee.flat, device=trainee.device)
        labels = torch.tensor([label for item in items for label in item.labels], device=trainee.device)
        return SteppedBatch(rows=rows, labels=labels, tokens=rows.tokens)

    def loss(self, trainee: Trainee, batch: SteppedBatch) -> Loss:
        """Summed losses of the steps. Facts: `right` is the share of right steps, which is the accuracy of praising every one."""
        found = scores(trainee.model, batch.rows, batch.ends)
        losses = binary_cross_entropy_with_logits(found, batch.labels.float(), reduction="none")
        said = found.detach()
        facts = {
            "accuracy": ((said > 0) == batch.labels).float().sum(),
            "right": batch.labels.float().sum(),
            "margin": torch.where(batch.labels, said, -said).sum(),
        }
        return Loss(total=losses.sum(), facts=facts)


def method(_section: Finetune, *, cache: Path, **_given: Any) -> ProcessReward:
    """process_reward."""
    return ProcessReward(cache=cache)


def _write_cache(path: Path, shards: Artifact, split: str) -> None:
    import pyarrow as pa

    integers = pa.list_(pa.int32())
    columns = [("input_ids", integers), ("loss_spans", integers), ("seq_lengths", integers)]
    schema = pa.schema([*columns, ("row_ids", pa.list_(pa.string())), ("labels", pa.list_(pa.bool_()))])
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = beside(path)
    try:
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, schema) as made:
            waiting = _windows(shards, split)
            while rows := list(islice(waiting, BLOCK_ROWS)):
                made.write_batch(pa.RecordBatch.from_pylist(rows, schema))
        sync_file(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _windows(shards: Artifact, split: str) -> Iterator[dict[str, Any]]:
    for row in read_stepwise(shards, split) if example_kind(shards, split) else ():
        ids, before = [*row.prompt_ids, *row.completion_ids], len(row.prompt_ids)
        spans = [place for end in row.ends for place in (before + end, before + end + 1)]
        yield {
            "input_ids": ids, "loss_spans": spans, "seq_lengths": [len(ids)], "row_ids": [row.row_id],
            "labels": row.labels,
        }  # fmt: skip


def _labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """[steps] bool, and [rows + 1] where those of each row begin."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        parts = pa.ipc.open_file(source).read_all().column("labels").chunks
        values = [part.flatten().to_numpy(zero_copy_only=False) for part in parts]
        counts = [part.value_lengths().to_numpy() for part in parts]
    first = np.zeros(1, np.int64)
    return np.concatenate([np.zeros(0, np.bool_), *values]), np.cumsum(np.concatenate([first, *counts]))
