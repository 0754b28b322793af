"""Pairs and labelled completions as windows of two rows, and the log-probability of each row: what preference methods share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ft_pipeline.encode.artifact import (
    CachedWindows,
    Labelled,
    Pair,
    Window,
    example_kind,
    labelled_at,
    mismatched,
    read_labelled,
    read_pairs,
    read_reference,
)
from ft_pipeline.errors import IntegrityError
from ft_pipeline.finetune.batches import Batch, batch_of, shared_batch_of
from ft_pipeline.finetune.methods.causal import token_losses
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.files import beside, sync_file

BLOCK_ROWS = 256
"""Rows of a record batch of the cache, and all that is in memory while it is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared(Window):
    """Two rows back to back. Pair: chosen, rejected. Labelled: its completion, then that of another prompt behind its own prompt."""

    reference: tuple[float, ...] = ()
    """Summed log-probabilities of both under the reference model, in nats; empty for a method without one."""
    label: bool = True
    """Labelled: the completion is wanted."""


class ComparedRows(Sequence[Compared]):
    """The rows of a split, token ids mapped from a file: 16 bytes a row in memory."""

    def __init__(self, windows: CachedWindows, labels: np.ndarray, reference: np.ndarray | None) -> None:
        self._windows, self._labels, self._reference = windows, labels, reference

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        window = self._windows[int(place)]
        return Compared(
            ids=window.ids, spans=window.spans, lengths=window.lengths, row_ids=window.row_ids,
            reference=() if self._reference is None else tuple(self._reference[place].tolist()),
            label=bool(self._labels[place]),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedBatch:
    """Some rows of one forward pass, n of them the first of their window and n the second, or the first ones alone."""

    rows: Batch
    counts: tuple[int, ...]
    """Trained tokens of each row, in the order of `rows`."""
    reference: torch.Tensor | None
    """[n, 2]."""
    labels: torch.Tensor
    """[n] bool."""
    tokens: int
    """Real tokens that are computed."""


def compared_rows(shards: Artifact, split: str, *, cache: Path, reference: Artifact | None = None) -> ComparedRows:
    """Pairs or labelled rows of a split with what the reference model thinks of them. Raises IntegrityError when it is of other rows."""
    path = cache / f"{shards.ref.digest[:32]}-{split}-compared.arrow"
    if not path.is_file():
        _write_cache(path, shards, split)
    opinions = None
    if reference is not None:
        opinions = np.array([list(r.sums.values()) for r in read_reference(reference, split)], np.float64).reshape(
            -1, 2
        )
    windows, labels = CachedWindows(path), _labels(path)
    if opinions is not None and len(opinions) != len(windows):
        raise IntegrityError(
            f"{reference.ref.path if reference else ''} has {len(opinions)} {split} rows, the shards have {len(windows)}",
            cure="delete it from the store: it is computed again",
        )
    return ComparedRows(windows, labels, opinions)


def compared_batch(trainee: Trainee, items: Sequence[Compared]) -> ComparedBatch:
    """Both rows of every item, their common beginning once where that gives the same losses."""
    shares = trainee.flat and not has_noise(trainee)
    rows = (
        shared_batch_of(items, device=trainee.device)
        if shares
        else batch_of(items, flat=trainee.flat, device=trainee.device)
    )
    counts = tuple(count for item in items for count in row_counts(item))
    reference = torch.tensor([i.reference for i in items], dtype=torch.float32, device=trainee.device)
    return ComparedBatch(
        rows=rows, counts=counts, reference=reference if reference.numel() else None,
        labels=torch.tensor([i.label for i in items], device=trainee.device), tokens=rows.tokens,
    )  # fmt: skip


def has_noise(trainee: Trainee) -> bool:
    """True when dropout makes two passes over one prompt differ: then chosen and rejected each get their own."""
    lora, config = trainee.section.lora, trainee.model.config
    return bool(lora and lora.dropout) or any(
        getattr(config, name, 0) for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")
    )


def row_counts(window: Window) -> list[int]:
    """Trained tokens of each row of a window."""
    ends = np.cumsum(window.lengths).tolist()
    starts = [0, *ends[:-1]]
    return [sum(b - a for a, b in window.spans if start <= a < end) for start, end in zip(starts, ends, strict=True)]


def row_log_probabilities(model: Any, rows: Batch, counts: Sequence[int]) -> torch.Tensor:
    """[rows] summed log-probability of the trained tokens of each row, in nats."""
    losses = token_losses(model, rows)
    row = torch.repeat_interleave(torch.tensor(counts, device=losses.device), output_size=len(losses))
    # one kernel instead of one a row; float64, because it adds one after the other
    sums = torch.zeros(len(counts), dtype=torch.float64, device=losses.device).index_add(0, row, losses.double())
    return -sums.float()


def _write_cache(path: Path, shards: Artifact, split: str) -> None:
    import pyarrow as pa

    integers = pa.list_(pa.int32())
    columns = [("input_ids", integers), ("loss_spans", integers), ("seq_lengths", integers)]
    schema = pa.schema([*columns, ("row_ids", pa.list_(pa.string())), ("label", pa.bool_())])
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


def _labels(path: Path) -> np.ndarray:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all().column("label").to_numpy()


def _windows(shards: Artifact, split: str) -> Iterator[dict[str, Any]]:
    kind = example_kind(shards, split)
    if kind is None:
        return
    if kind is not Labelled:
        for pair in read_pairs(shards, split):
            yield _window(pair, (pair.chosen_ids, pair.rejected_ids), (pair.chosen_spans, pair.rejected_spans))
        return
    for row, other in _with_others(shards, split):
        ids, spans = (row.completion_ids, other.completion_ids), (row.completion_spans, other.completion_spans)
        yield {**_window(row, ids, spans), "label": row.label}


def _with_others(shards: Artifact, split: str) -> Iterator[tuple[Labelled, Labelled]]:
    """Each row with the one whose completion is measured behind its prompt: the pairing of `reference_logprobs`."""
    partners = mismatched([_key(row.prompt_ids) for row in read_labelled(shards, split)])
    rows, start = read_labelled(shards, split), 0
    while block := list(islice(rows, BLOCK_ROWS)):
        for place, row in enumerate(block):
            near = partners[start + place] - start
            yield row, block[near] if 0 <= near < len(block) else labelled_at(shards, split, start + near)
        start += len(block)


def _window(row: Pair | Labelled, completions: Sequence[Any], spans: Sequence[Any]) -> dict[str, Any]:
    ids: list[int] = []
    edges: list[int] = []
    lengths: list[int] = []
    for completion, trained in zip(completions, spans, strict=True):
        start = len(ids) + len(row.prompt_ids)
        edges += [place + start for span in trained for place in span]
        ids += [*row.prompt_ids, *completion]
        lengths.append(len(row.prompt_ids) + len(completion))
    return {"input_ids": ids, "loss_spans": edges, "seq_lengths": lengths, "row_ids": [row.row_id] * 2, "label": True}


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(repr(list(ids)).encode()).digest()
