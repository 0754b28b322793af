"""The pre-flight that blocks: on this exact model a packed row must have the loss that it has alone, and a leak must be seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ft_pipeline.encode.artifact import Window
from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.batches import batch_of, single_rows
from ft_pipeline.finetune.certificate import Certificate, Fault
from ft_pipeline.finetune.methods.causal import token_losses
from ft_pipeline.finetune.model import Trainee

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest difference of a row's mean loss in nats. Measured 0 to 6e-8 in float32; bfloat16 is the rounding of its 8 bits."""
WINDOWS = 3
"""So many are compared: the first, the one of most rows and the one of fewest."""
ROWS_ALONE = 12
"""Rows of a window that are run alone, first and last among them: a window may hold 200."""
HEAD_TOKENS = 8
"""Tokens behind each boundary that count whether trained or not: a leak is largest there, even under a short sliding window."""


def check_boundaries(trainee: Trainee, windows: Sequence[Window]) -> dict[str, Any]:
    """The facts of the certificate. Raises TrainingFailed when the model does not pass."""
    found = certificate(trainee, windows)
    if found.fault == "packed_rows_differ":
        raise TrainingFailed(
            f"packed rows see each other: their loss differs by {found.measured['packed']:.2e}, the limit is {found.tolerance:.0e}",
            why="Every row would be trained on its neighbours in the window.",
            cure="report the model's class; encode.window_tokens at the length of one row trains it unpacked",
        )
    if found.fault:
        raise TrainingFailed(
            f"the boundary check is blind on this model: joining the rows of a window does not change their loss ({found.controls})",
            why="A check that cannot fail proves nothing.",
            cure="look at the base model's weights: they may all be zero",
        )
    return found.facts()


def certificate(trainee: Trainee, windows: Sequence[Window]) -> Certificate:
    """Compares packed with alone in train and eval mode, without noise, on up to three windows; the controls must differ.

    The packed losses come from the training loop's own call (methods/causal.py) in its own micro-batches.
    """
    chosen = [_probe(window) for window in _chosen(windows)]
    scope: dict[str, Any] = {
        "model": type(_plain(trainee.model)).__name__, "attention": _plain(trainee.model).config._attn_implementation,
        "road": "flat" if trainee.flat else "padded", "dtype": trainee.section.dtype,
    }  # fmt: skip
    if not chosen:
        return Certificate(**scope)
    limit, modes = TOLERANCE[trainee.section.dtype], ("eval", "train")
    found = {mode: _differences(trainee, chosen, mode=mode) for mode in modes}
    names = [name for name in found["eval"] if name != "packed"]
    controls = {name: all(found[mode][name] > limit for mode in modes) for name in names}
    # not `>`: a loss that is no number is no proof either
    same = all(found[mode]["packed"] <= limit for mode in modes)
    fault: Fault = "packed_rows_differ" if not same else "" if all(controls.values()) else "control_is_blind"
    measured = {"packed": max(found[m]["packed"] for m in modes), **{n: min(found[m][n] for m in modes) for n in names}}
    rows = sum(len(_alone(window)) for window in chosen)
    return Certificate(
        **scope, modes=modes, windows=len(chosen), rows=rows, tolerance=limit, controls=controls, fault=fault,
        measured=measured,
    )  # fmt: skip


def _differences(trainee: Trainee, windows: list[Window], *, mode: str) -> dict[str, float]:
    """Largest difference of a row's mean loss from the one it has alone: packed as trained, and with each planted leak."""
    with torch.no_grad(), trainee.precision(), _without_noise(trainee.model, training=mode == "train"):
        alone = torch.stack([_losses(trainee, [row]).mean() for w in windows for row in _picked(w, single_rows(w))])
        joined = [replace(window, lengths=(len(window.ids),)) for window in windows]
        found = {"packed": _losses(trainee, windows), "one_row": _losses(trainee, joined)}
        if not trainee.flat:
            found["all_ones_mask"] = _masked_losses(trainee, windows)
        return {name: float((_by_row(windows, losses) - alone).abs().max()) for name, losses in found.items()}


def _losses(trainee: Trainee, windows: Sequence[Window]) -> torch.Tensor:
    """Of all probed tokens, in micro-batches as the training composes them."""
    size = trainee.section.windows_per_micro
    parts = [windows[start : start + size] for start in range(0, len(windows), size)]
    losses = [token_losses(trainee.model, batch_of(p, flat=trainee.flat, device=trainee.device)) for p in parts]
    return torch.cat(losses)


def _masked_losses(trainee: Trainee, windows: Sequence[Window]) -> torch.Tensor:
    """The same call with attention_mask of ones, which makes transformers overlook the boundaries in position_ids."""
    losses = []
    for window in windows:
        batch = batch_of([window], flat=False, device=trainee.device)
        ones = torch.ones_like(batch.input_ids)
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": ones}
        logits = trainee.model(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, batch.predict)
        losses.append(cross_entropy(logits.float(), batch.targets, reduction="none"))
    return torch.cat(losses)


def _by_row(windows: Sequence[Window], losses: torch.Tensor) -> torch.Tensor:
    """Mean loss of each row that is also run alone."""
    counts = [row.trained_tokens for window in windows for row in single_rows(window)]
    means = [part.mean() for part in losses.split(counts)]
    starts = accumulate([len(window.lengths) for window in windows], initial=0)
    return torch.stack(
        [mean for w, (a, b) in zip(windows, pairwise(starts), strict=True) for mean in _picked(w, means[a:b])]
    )


def _chosen(windows: Sequence[Window]) -> list[Window]:
    """The first window with two rows that train, the one of most rows, and the one of fewest."""
    comparable = [w for w in windows if sum(1 for row in single_rows(w) if row.spans) > 1]
    if not comparable:
        return []
    wanted = [
        comparable[0],
        max(comparable, key=lambda w: len(w.lengths)),
        min(comparable, key=lambda w: len(w.lengths)),
    ]
    return list({id(window): window for window in wanted}.values())[:WINDOWS]


def _probe(window: Window) -> Window:
    """The window with its trained tokens and the first ones of every row, as spans of its own."""
    spans, start = [], 0
    for row in single_rows(window):
        head = min(1 + HEAD_TOKENS, row.lengths[0])
        edges = [(1, head), *((max(a, head), b) for a, b in row.spans)]
        spans += [(start + a, start + b) for a, b in edges if a < b]
        start += row.lengths[0]
    return replace(window, spans=tuple(spans))


def _alone(window: Window) -> list[int]:
    """Places of the rows that are run alone: those with two tokens and more, spread over the window."""
    places = [place for place, length in enumerate(window.lengths) if length > 1]
    if len(places) <= ROWS_ALONE:
        return places
    return sorted({places[round(n * (len(places) - 1) / (ROWS_ALONE - 1))] for n in range(ROWS_ALONE)})


def _picked(window: Window, rows: Sequence[Any]) -> list[Any]:
    return [rows[place] for place in _alone(window)]


def _plain(model: Any) -> Any:
    """The transformers model inside a PEFT one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _without_noise(model: Any, *, training: bool) -> Iterator[None]:
    """Train or eval mode with every dropout at 0: noise would hide what is compared."""
    was_training = model.training
    drops = [(m, "p", m.p) for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    drops += [(m, "attention_dropout", m.attention_dropout) for m in model.modules() if hasattr(m, "attention_dropout")]
    try:
        for module, name, _ in drops:
            setattr(module, name, 0.0)
        model.train(training)
        yield
    finally:
        for module, name, value in drops:
            setattr(module, name, value)
        model.train(was_training)
