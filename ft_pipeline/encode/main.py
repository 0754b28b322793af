"""`python -m ft_pipeline.encode.main job.json`: curated rows become packed windows. A child process, so that no tokenizer loads in Dagster.

Rows are tokenised in blocks by a pool of processes and spilled into the job's folder; then packed by length and written. A killed
job finds its finished blocks again. The result is the same for any number of processes.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping

from ft_pipeline.encode.artifact import SPLITS
from ft_pipeline.encode.blocks import UNMASKED, encoded_blocks, refuse_unmasked
from ft_pipeline.encode.gather import Spilled, spilled
from ft_pipeline.encode.publish import write_files
from ft_pipeline.encode.template import Template, load_template, refuse_long_windows
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Encode
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Ref
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, log
from ft_pipeline.workers.startup import UNUSED_BY_A_TOKENIZER, hide

BLOCKS = "blocks"
EXAMPLE_SHAPES = frozenset({"preference", "kto", "rlvr"})
"""Shapes that are not packed into windows: pairs, labelled answers, prompts."""


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the `packed_shards` of the job. Raises DataError when the template cannot be masked or no row is left."""
    curated, base = store.fetch(job.spec.parents["curated"]), store.fetch(Ref(**job.facts["base"]))
    template = load_template(base.folder, loss=Encode(**job.section).loss)
    if _shapes(curated) & EXAMPLE_SHAPES:
        _publish_examples(job, store, (curated, template, mailbox))
    else:
        _publish_windows(job, store, (curated, base, template, mailbox))
    shutil.rmtree(job.folder / BLOCKS, ignore_errors=True)


def _publish_windows(job: Job, store: Store, parts: tuple[Artifact, Artifact, Template, Mailbox]) -> None:
    curated, base, template, mailbox = parts
    section = Encode(**job.section)
    refuse_long_windows(template, section.window_tokens)
    blocks = encoded_blocks(
        curated, job.folder / BLOCKS, (template, section, base.folder),
        processes=job.placement.threads, listener=mailbox,
    )  # fmt: skip
    splits = {split: spilled(paths) for split, paths in blocks.items()}
    reasons = _reasons(splits)
    num_kept = sum(rows.counts["rows"] for rows in splits.values())
    refuse_unmasked(reasons, blocks, (num_kept + sum(reasons[r] for r in UNMASKED), template))
    if not len(splits["train"].lengths):
        raise DataError(
            f"no row is left to train on: {dict(reasons)}",
            cure="a larger encode.window_tokens, or overlong: truncate; the ledger names each row",
        )
    with store.publish(job.spec) as draft:
        write_files(draft, splits, (template, section), listener=mailbox)
    log(mailbox, f"{draft.counts['windows']} windows, {reasons.total()} rows rejected or cut", **draft.counts)


def _publish_examples(job: Job, store: Store, parts: tuple[Artifact, Template, Mailbox]) -> None:
    """Publishes pairs, labelled answers or prompts. Raises DataError: nothing trains on them yet."""
    curated, _template, _mailbox = parts
    shapes = ", ".join(sorted(_shapes(curated)))
    raise DataError(
        f"no row is left to train on: the rows of {job.spec.parents['curated'].digest[:12]} in {store.bucket.root} are {shapes}",
        why="Windows are made of conversations, completions and texts.",
        cure="a dataset of one of those",
    )


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
