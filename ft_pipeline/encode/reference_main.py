"""`python -m ft_pipeline.encode.reference_main job.json`: the reference model's log-probabilities, block by block, resumable."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.artifact import SPLITS
from ft_pipeline.encode.example_rows import (
    Labelled,
    Pair,
    example_kind,
    labelled_at,
    mismatched,
    read_labelled,
    read_pairs,
)
from ft_pipeline.encode.reference import SIDES, Measure, columns_of, table_of
from ft_pipeline.encode.reference_model import ADAPTER_CONFIG
from ft_pipeline.encode.shards import TableFile
from ft_pipeline.errors import DataError
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.files import write_atomic
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, log, progress
from ft_pipeline.workers.startup import UNUSED_BY_A_MODEL, hide

if TYPE_CHECKING:
    from ft_pipeline.encode.logprobs import Sequenced
    from ft_pipeline.store.artifacts import Draft

BLOCK_ROWS = 256
"""Rows between two savings: a killed run loses at most the work of one block."""
BLOCKS = "blocks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows of a split in order, and the completions that stand behind a wrong prompt (KTO)."""

    path: Path
    rows: Sequence[Pair | Labelled]
    others: Sequence[Labelled]


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the job's `reference_logprobs`. Raises DataError when the shards hold neither pairs nor labelled rows."""
    measure = Measure(**job.section)
    shards, reference = store.fetch(job.spec.parents["shards"]), store.fetch(job.spec.parents["reference"])
    kind = _kind(shards)
    base = store.fetch(job.spec.parents["base"]) if "base" in job.spec.parents else None
    model = _model((reference, base), measure, job)
    done, total = 0, shards.manifest.counts.get("rows", 0)
    made: dict[str, list[Path]] = {}
    for split in SPLITS:
        for block in _blocks(shards, (split, kind), job.folder / BLOCKS):
            made.setdefault(split, []).append(block.path)
            if not _is_whole(block.path, columns_of(kind)):
                _save(block.path, _measured(model, block, (kind, measure)))
            done += len(block.rows)
            progress(mailbox, "reference", min(done, total or done), total=total or done, unit="row")
    with store.publish(job.spec) as draft:
        for split, paths in made.items():
            _write(draft, split, paths)
        draft.counts["rows"] = done
    log(mailbox, f"log-probabilities of {done} rows", rows=done)
    shutil.rmtree(job.folder / BLOCKS, ignore_errors=True)


def _kind(shards: Artifact) -> type:
    kind = example_kind(shards)
    if kind not in SIDES:
        raise DataError(
            f"{shards.ref.path} holds no completions that are compared with a reference model",
            why="Only preference pairs (dpo) and labelled completions (kto) are.",
            cure="a dataset of layout preference or kto",
        )
    return kind


def _model(parts: tuple[Artifact, Artifact | None], measure: Measure, job: Job) -> Callable[[], Any]:
    """Loads at the first call: a run that only has to publish its blocks needs no model. parts: the reference, and what an adapter is on."""
    loaded: list[Any] = []
    reference, base = parts
    is_lora = base is not None and ADAPTER_CONFIG in reference.manifest.files
    folder, adapter = (base.folder, reference.folder) if base is not None and is_lora else (reference.folder, None)

    def model() -> Any:
        from ft_pipeline.encode.logprobs import load_reference

        if not loaded:
            place = job.placement
            loaded.append(
                load_reference(folder, adapter=adapter, dtype=measure.dtype, device=place.device, threads=place.threads)
            )
        return loaded[0]

    return model


def _blocks(shards: Artifact, what: tuple[str, type], folder: Path) -> Iterator[Block]:
    split, kind = what
    partners = mismatched([_key(row.prompt_ids) for row in read_labelled(shards, split)]) if kind is Labelled else []
    rows = read_labelled(shards, split) if kind is Labelled else read_pairs(shards, split)
    start = 0
    while batch := list(islice(rows, BLOCK_ROWS)):
        found: dict[int, Labelled] = {start + n: row for n, row in enumerate(batch) if isinstance(row, Labelled)}
        wanted = partners[start : start + len(batch)]
        others = [found[p] if p in found else labelled_at(shards, split, p) for p in wanted]
        yield Block(path=folder / f"{split}-{start // BLOCK_ROWS:06d}.parquet", rows=batch, others=others)
        start += len(batch)


def _measured(model: Callable[[], Any], block: Block, what: tuple[type, Measure]) -> Any:
    from ft_pipeline.encode.logprobs import log_probabilities

    kind, measure = what
    sequences = [
        s for n, row in enumerate(block.rows) for s in _sequences(row, block.others[n] if block.others else None)
    ]
    return table_of(kind, block.rows, log_probabilities(model(), sequences, batch_tokens=measure.batch_tokens))


def _sequences(row: Pair | Labelled, other: Labelled | None) -> list[Sequenced]:
    """The two of a row, in the order of `SIDES`."""
    from ft_pipeline.encode.logprobs import Sequenced

    if isinstance(row, Pair):
        sides = [(row.chosen_ids, row.chosen_spans), (row.rejected_ids, row.rejected_spans)]
    else:
        wrong = other or row
        sides = [(row.completion_ids, row.completion_spans), (wrong.completion_ids, wrong.completion_spans)]
    start = len(row.prompt_ids)
    return [
        Sequenced(ids=[*row.prompt_ids, *ids], spans=[(a + start, b + start) for a, b in spans]) for ids, spans in sides
    ]


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(repr(list(ids)).encode()).digest()


def _save(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def _is_whole(path: Path, columns: tuple[str, ...]) -> bool:
    """False for a block that is not there or that a dying disk has cut: it is computed again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_table(path).column_names) == columns
    except (FileNotFoundError, OSError, pa.ArrowInvalid):
        return False


def _write(draft: Draft, split: str, paths: Sequence[Path]) -> None:
    """The blocks of a split as one file, one row group a block."""
    import pyarrow.parquet as pq

    with TableFile(draft, f"{split}.parquet", pq.read_schema(paths[0])) as file:
        for path in paths:
            file.write(pq.read_table(path))


if __name__ == "__main__":
    hide(UNUSED_BY_A_MODEL)
    sys.exit(run_child(body, sys.argv))
