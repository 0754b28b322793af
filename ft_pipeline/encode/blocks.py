"""The blocks of a curated dataset, encoded by a pool of processes; those that an interrupted run finished are found, not made again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.encode.artifact import SPLITS
from ft_pipeline.encode.rows import Task, encode_block, open_tools, use_tools
from ft_pipeline.encode.spill import cut, read_block, read_ledger
from ft_pipeline.encode.template import Template
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Encode
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.workers.messages import Listener, log, progress
from ft_pipeline.workers.pool import mapped

SMALL_ROWS = 20_000
"""Fewer rows are encoded in this process: starting others (2-4 s each) would cost more than it saves."""
MAX_UNMASKED_SHARE = 0.01
"""Above this share of rows without a loss mask the template, not the rows, is at fault: the dataset is refused."""
UNMASKED = ("assistant_spans_not_found", "template_error", "no_chat_template")


@dataclass
class Work:
    """Blocks of one dataset: which there are, how far it is."""

    folder: Path
    """Of the spilled blocks."""
    total: int
    """Rows of all splits."""
    listener: Listener
    blocks: dict[str, list[Path]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    """Split -> its blocks in order, finished or handed out."""
    done: int = 0
    found: int = 0
    """Rows of blocks that were finished before."""
    first: tuple[float, int] | None = None
    """When the first block came, and the rows done then: starting the processes is no part of the rate."""
    reasons: Counter[str] = field(default_factory=Counter)

    def told(self, rows: int, *, found: bool = False) -> None:
        """Some rows are finished, or were before (`found`): tells how fast it goes and how long it will take."""
        self.done += rows
        self.found += rows if found else 0
        now, made = time.monotonic(), self.done - self.found
        began, before = self.first = self.first or (now, made)
        rate = (made - before) / max(now - began, 1e-9)
        facts = {"rows/s": f"{rate:,.0f}", "left": _clock((self.total - self.done) / rate)} if rate else {}
        progress(self.listener, "encode", self.done, total=self.total, unit="row", **facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What rows are encoded with."""

    base: Path
    """Folder of the base model."""
    section: Encode
    template: Callable[[], Template]
    """Of this process; other processes load their own, and start while this one still loads."""


def encoded_blocks(
    curated: Artifact, folder: Path, tools: Tools, *, processes: int, listener: Listener
) -> dict[str, list[Path]]:
    """Split -> its finished blocks in order, in a folder.

    Raises DataError as soon as so many rows have no loss mask that the dataset will be refused.
    """
    work = Work(folder, sum(_num_rows(curated, split) for split in SPLITS), listener)
    if processes <= 1 or work.total < SMALL_ROWS:
        use_tools(tools.template(), tools.section)
        results = map(encode_block, _tasks(curated, work))
    else:
        opened: dict[str, Any] = {"initializer": open_tools, "initargs": (tools.base, tools.section)}
        results = mapped(encode_block, _tasks(curated, work), processes=processes, **opened)
    for path, rows in results:
        work.told(rows)
        work.reasons.update(read_block(path).facts["reasons"])
        refuse_unmasked(work.reasons, work.blocks, (work.total, tools.template))
    if work.found:
        log(listener, f"{work.found:,} of {work.total:,} rows were encoded before an interruption: kept")
    return work.blocks


def refuse_unmasked(
    reasons: Mapping[str, int], blocks: Mapping[str, list[Path]], whole: tuple[int, Callable[[], Template]]
) -> None:
    """Raises DataError with the first such row when more than 1% of the rows have no loss mask. `whole`: number of rows, template."""
    num_rows, template = whole
    unmasked = sum(reasons.get(reason, 0) for reason in UNMASKED)
    if unmasked <= MAX_UNMASKED_SHARE * num_rows:
        return
    first = next(entry for entry in _entries(blocks) if entry["reason"] in UNMASKED)
    raise DataError(
        f"the chat template gives no loss mask for {unmasked} rows (road {template().road}); first {first['row_id']}: "
        f"{first['reason']} {first['evidence']}",
        why="Training on the wrong tokens, or dropping every conversation of several turns, would not be seen in the loss.",
        cure="put {% generation %} ... {% endgeneration %} around the assistant's text in the base model's chat_template.jinja",
    )


def _tasks(curated: Artifact, work: Work) -> Iterator[Task]:
    """The blocks that are still to be made; the others are counted as done."""
    for split in SPLITS:
        for number, rows in enumerate(cut(curated.file(f"{split}.parquet"))):
            path = work.folder / f"{split}-{number:06d}.arrow"
            work.blocks[split].append(path)
            if path.is_file():
                work.told(rows.num_rows, found=True)
                work.reasons.update(read_block(path).facts["reasons"])
            else:
                yield Task(path=path, rows=rows)


def _num_rows(curated: Artifact, split: str) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(curated.file(f"{split}.parquet")).num_rows


def _entries(blocks: Mapping[str, list[Path]]) -> Iterator[dict[str, Any]]:
    for path in (path for paths in blocks.values() for path in paths if path.is_file()):
        if (ledger := read_ledger(path)) is not None:
            yield from ledger.to_pylist()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
