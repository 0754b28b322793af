"""`python -m ft_pipeline.encode.main job.json`: curated rows become packed windows. A child process, so that no tokenizer loads in Dagster.

Rows are tokenised in blocks by a pool of processes and spilled into the job's folder; then packed by length and written. A killed
job finds its finished blocks again. The result is the same for any number of processes.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from ft_pipeline.encode.artifact import SPLITS
from ft_pipeline.encode.blocks import UNMASKED, Tools, encoded_blocks, refuse_unmasked
from ft_pipeline.encode.gather import Spilled, spilled
from ft_pipeline.encode.publish import write_files
from ft_pipeline.encode.publish_examples import write_example_files
from ft_pipeline.encode.rows import loaded
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Encode
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Ref
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, log
from ft_pipeline.workers.startup import UNUSED_BY_A_TOKENIZER, hide

BLOCKS = "blocks"
EXAMPLE_SHAPES = frozenset({"preference", "kto", "rlvr", "stepwise"})
"""Shapes that are not packed into windows: pairs, labelled answers, prompts, judged steps."""


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the `packed_shards` of the job. Raises DataError when the template cannot be masked or no row is left."""
    curated, base = store.fetch(job.spec.parents["curated"]), store.fetch(Ref(**job.facts["base"]))
    section = Encode(**job.section)
    with ThreadPoolExecutor(1) as loader:
        # in a thread: the worker processes start meanwhile
        template = loader.submit(loaded, base.folder, section)
        tools = Tools(base=base.folder, section=section, template=template.result)
        publish = _publish_examples if _shapes(curated) & EXAMPLE_SHAPES else _publish_windows
        publish(job, store, (curated, tools, mailbox))
    shutil.rmtree(job.folder / BLOCKS, ignore_errors=True)


def _publish_windows(job: Job, store: Store, parts: tuple[Artifact, Tools, Mailbox]) -> None:
    curated, tools, mailbox = parts
    blocks = encoded_blocks(curated, job.folder / BLOCKS, tools, processes=job.placement.threads, listener=mailbox)
    splits = {split: spilled(paths) for split, paths in blocks.items()}
    reasons = _reasons(splits)
    num_kept = sum(rows.counts["rows"] for rows in splits.values())
    refuse_unmasked(reasons, blocks, (num_kept + sum(reasons[r] for r in UNMASKED), tools.template))
    if not len(splits["train"].lengths):
        raise DataError(
            f"no row is left to train on: {dict(reasons)}",
            cure="a larger encode.window_tokens, or overlong: truncate; the ledger names each row",
        )
    with store.publish(job.spec) as draft:
        write_files(draft, splits, (tools.template(), tools.section), listener=mailbox)
    log(mailbox, f"{draft.counts['windows']} windows, {reasons.total()} rows rejected or cut", **draft.counts)


def _publish_examples(job: Job, store: Store, parts: tuple[Artifact, Tools, Mailbox]) -> None:
    """Publishes pairs, labelled answers, prompts or judged steps."""
    curated, tools, mailbox = parts
    with store.publish(job.spec) as draft:
        reasons = write_example_files(draft, curated, (tools.template(), tools.section), listener=mailbox)
    log(mailbox, f"{draft.counts['rows']} rows, {reasons.total()} rejected", **draft.counts)


def _shapes(curated: Artifact) -> set[str]:
    """The shapes of all rows."""
    import pyarrow.parquet as pq

    found: set[str] = set()
    for split in SPLITS:
        with pq.ParquetFile(curated.file(f"{split}.parquet"), read_dictionary=["shape"]) as file:
            for batch in file.iter_batches(columns=["shape"]):
                found.update(batch.column("shape").unique().to_pylist())
    return found


def _reasons(splits: Mapping[str, Spilled]) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for rows in splits.values():
        reasons.update(rows.reasons)
    return reasons


if __name__ == "__main__":
    hide(UNUSED_BY_A_TOKENIZER)
    sys.exit(run_child(body, sys.argv))
