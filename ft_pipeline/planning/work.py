"""How much there is to compute: tokens, steps, FLOPs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ft_pipeline.encode.artifact import needs_reference
from ft_pipeline.finetune import flops
from ft_pipeline.finetune.requirements import EXAMPLES
from ft_pipeline.planning.memory import Checkpointing
from ft_pipeline.planning.shapes import Shape
from ft_pipeline.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one run trains on."""

    rows: int
    """Of the training split."""
    holdout: int
    tokens: int
    """Of one epoch."""
    windows: int
    trained_share: float
    """Share of the tokens that the loss counts."""
    known_from: str
    """Where the numbers come from, for people."""
    exact: bool
    """True when windows were counted and not estimated."""
    row_tokens: float
    """Mean length of a row: attention costs its square."""


def estimated(found: Recipe, *, rows: int, row_tokens: float, fill: float, known_from: str) -> Work:
    """The work of so many raw rows of so many tokens: packed into windows, or row by row where the method compares or samples."""
    splits, section, length = found.curate.splits, found.finetune, found.encode.window_tokens
    train = round(rows * (1 - splits.validation - splits.holdout))
    mean = min(row_tokens, length * (2 if EXAMPLES.get(section.method) == "pair" else 1))
    tokens = train * mean
    if section.reinforce:
        mean = min(mean + section.reinforce.max_new_tokens, length + section.reinforce.max_new_tokens)
        tokens = train * mean * section.reinforce.completions
    windows = train if section.method in EXAMPLES else math.ceil(tokens / (length * fill))
    return Work(
        rows=train, holdout=round(rows * splits.holdout), tokens=round(tokens), windows=windows,
        trained_share=1.0 if found.encode.loss == "all" or section.method == "cpt" else 0.5,
        known_from=known_from, exact=False, row_tokens=mean,
    )  # fmt: skip


def steps(found: Recipe, windows: int) -> int:
    """Optimizer steps of all epochs, as finetune/schedule.py counts them."""
    section = found.finetune
    micros = windows // section.windows_per_micro
    updates = section.reinforce.updates_per_rollout if section.reinforce else 1
    return micros * section.epochs // (section.windows_per_step // section.windows_per_micro) * updates


RECOMPUTED: dict[Checkpointing, float] = {"none": 0.0, "selective": 0.0, "full": 1.0}
"""Share of the forward pass that the backward pass repeats, in FLOPs."""


def run_flops(shape: Shape, found: Recipe, work: Work, *, recomputed: float = 0.0) -> tuple[float, float]:
    """(model FLOPs, hardware FLOPs) of all epochs. Rows are taken as equally long; a reference or teacher reads each once."""
    lora = found.finetune.lora
    trained = shape.lora_parameters(lora.rank, lora.targets) if lora else 0
    per_token = flops.Work(
        matmul=shape.matmul, head=shape.embedding, layers=shape.layers, width=shape.queries, lora=trained
    )
    mean = max(1, round(work.row_tokens))
    row = flops.step_flops(per_token, [mean], predicted=round(mean * work.trained_share), recomputed=recomputed)
    updates = found.finetune.reinforce.updates_per_rollout if found.finetune.reinforce else 1
    rows = work.tokens / mean * found.finetune.epochs * updates
    reference = 2 * shape.matmul * work.tokens if needs_reference(found.finetune) or found.finetune.distill else 0
    return row.model * rows + reference, row.hardware * rows + reference
