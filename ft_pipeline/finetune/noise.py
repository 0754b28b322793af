"""NEFTune (arXiv 2310.05914): uniform noise on the embeddings while a model trains, scaled by the length of each row of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ft_pipeline.finetune.batches import Batch


@contextmanager
def noisy_embeddings(model: Any, batch: Batch, *, alpha: float) -> Iterator[None]:
    """The model's next forward passes have noise; none in eval mode or at alpha 0. Drawn from torch's generator, as dropout is.

    A packed row has the noise that it would have alone: at most alpha / sqrt(its tokens x width), not the window's tokens.
    """
    if not alpha or not model.training:
        yield
        return
    lengths = _row_lengths(batch.lengths, batch.input_ids.shape)

    def add(_module: Any, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        bound = torch.from_numpy(alpha / np.sqrt(lengths * embedded.shape[-1])).to(embedded)
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * bound[..., None]

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _row_lengths(windows: Sequence[Sequence[int]], shape: Sequence[int]) -> np.ndarray:
    """[1, T] or [B, W]: how long the row of each token is; padding is infinitely long, which is no noise."""
    lines = [np.repeat(np.asarray(rows, np.float32), rows) for rows in windows]
    if shape[0] == 1:
        lines = [np.concatenate(lines)]
    made = np.full(tuple(shape), np.inf, np.float32)
    for place, line in enumerate(lines):
        made[place, : len(line)] = line
    return made
