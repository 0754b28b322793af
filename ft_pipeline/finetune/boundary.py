"""The pre-flight that blocks: on this exact model a packed row must have the loss that it has alone, and a leak must be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ft_pipeline.encode.artifact import Window
from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.batches import batch_of, single_rows
from ft_pipeline.finetune.methods.causal import token_losses
from ft_pipeline.finetune.model import Trainee

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest difference of a row's mean loss in nats. Measured 0 to 6e-8 in float32; bfloat16 is the rounding of its 8 bits."""


def check_boundaries(trainee: Trainee, windows: Sequence[Window]) -> dict[str, Any]:
    """What was found on the first window with two rows that train: facts that are the same on every machine.

    Raises TrainingFailed when packed rows see each other, and when the negative control (the window as one row) shows no leak
    on a model that attends to the whole row.
    """
    window = next((w for w in windows if _comparable(w)), None)
    if window is None:
        return {"checked": False, "reason": "no window holds two rows with trained tokens"}
    limit = TOLERANCE[trainee.section.dtype]
    was_training, leak_seen = trainee.model.training, False
    modes = ("eval", "train") if _is_without_noise(trainee) else ("eval",)
    for mode in modes:
        trainee.model.train(mode == "train")
        alone = torch.cat([_losses(trainee, row)[None].mean(1) for row in single_rows(window) if row.spans])
        packed = _by_row(window, _losses(trainee, window))
        one_row = _by_row(window, _losses(trainee, replace(window, lengths=(len(window.ids),))))
        leak_seen = float((one_row - alone).abs().max()) > limit
        _refuse_difference(float((packed - alone).abs().max()), limit)
        # a sliding window may end before the neighbour: then there is nothing to see, and nothing to leak
        if not leak_seen and trainee.flat:
            _refuse_blindness()
    trainee.model.train(was_training)
    facts = {"rows": len(window.lengths), "modes": list(modes), "tolerance": limit}
    return {"checked": True, "leak_seen": leak_seen, **facts}


def _refuse_difference(difference: float, limit: float) -> None:
    if not difference <= limit:
        raise TrainingFailed(
            f"packed rows see each other: their loss differs by {difference:.2e}, the limit is {limit:.0e}",
            why="Every row would be trained on its neighbours in the window.",
            cure="report the model's class; encode.window_tokens at the length of one row trains it unpacked",
        )


def _refuse_blindness() -> None:
    raise TrainingFailed(
        "the boundary check is blind on this model: joining the rows of a window does not change their loss",
        why="A check that cannot fail proves nothing.",
        cure="look at the base model's weights: they may all be zero",
    )


def _comparable(window: Window) -> bool:
    return sum(1 for row in single_rows(window) if row.spans) > 1


def _is_without_noise(trainee: Trainee) -> bool:
    lora = trainee.section.lora
    drops = [m for m in trainee.model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    return (lora is None or lora.dropout == 0) and not drops


def _losses(trainee: Trainee, window: Window) -> torch.Tensor:
    batch = batch_of([window], flat=trainee.flat, device=trainee.device)
    with torch.no_grad(), trainee.precision():
        return token_losses(trainee.model, batch)


def _by_row(window: Window, losses: torch.Tensor) -> torch.Tensor:
    """Mean loss of each row with trained tokens."""
    counts = [row.trained_tokens for row in single_rows(window) if row.spans]
    return torch.stack([part.mean() for part in losses.split(counts)])
