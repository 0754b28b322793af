"""`python -m ft_pipeline.finetune.teacher_main job.json`: the likeliest tokens of a teacher at each trained token, block by block, resumable."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.artifact import SPLITS, Window, read_windows
from ft_pipeline.finetune.teacher import Expected, is_whole, save_block, write_taught
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, log, progress
from ft_pipeline.workers.startup import UNUSED_BY_A_MODEL, hide

if TYPE_CHECKING:
    from ft_pipeline.finetune.model import Trainee

BLOCK_WINDOWS = 64
"""Windows between two savings."""
BLOCKS = "blocks"


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the job's `teacher_logprobs`."""
    shards, teacher = store.fetch(job.spec.parents["shards"]), store.fetch(job.spec.parents["teacher"])
    model = _model(teacher, job)
    done, total = 0, shards.manifest.counts["windows"]
    made: dict[str, list[Path]] = {}
    for split in SPLITS:
        for number, windows in enumerate(_blocks(shards, split)):
            path = job.folder / BLOCKS / f"{split}-{number:06d}.npz"
            made.setdefault(split, []).append(path)
            if not is_whole(path, len(windows)):
                save_block(path, [_expected(model(), window, job.section) for window in windows])
            done += len(windows)
            progress(mailbox, "teacher", done, total=total, unit="window")
    with store.publish(job.spec) as draft:
        draft.counts["windows"] = done
        draft.counts["tokens"] = sum(write_taught(draft, split, paths) for split, paths in made.items())
    log(mailbox, f"a teacher's expectations of {done} windows", windows=done)
    shutil.rmtree(job.folder / BLOCKS, ignore_errors=True)


def _blocks(shards: Artifact, split: str) -> Iterator[Sequence[Window]]:
    from itertools import islice

    windows = read_windows(shards, split)
    while block := list(islice(windows, BLOCK_WINDOWS)):
        yield block


def _model(teacher: Artifact, job: Job) -> Callable[[], Trainee]:
    """Loads at the first call: a run that only has to publish its blocks needs no model."""
    loaded: list[Trainee] = []

    def model() -> Trainee:
        from ft_pipeline.finetune.methods.distill import load_teacher

        if not loaded:
            loaded.append(load_teacher(teacher.folder, job.section["dtype"], job.placement))
        return loaded[0]

    return model


def _expected(teacher: Trainee, window: Window, section: Any) -> Expected:
    from ft_pipeline.finetune.methods.distill import expected

    return expected(teacher, window, section)


if __name__ == "__main__":
    hide(UNUSED_BY_A_MODEL)
    sys.exit(run_child(body, sys.argv))
