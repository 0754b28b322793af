"""Log-probabilities of trained tokens under a causal model: batches padded behind, the head only where a token is trained, no cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ft_pipeline.encode.spans import Span
from ft_pipeline.errors import UserError

ROWS_OF_LOGITS = 512
"""Taken through the softmax at a time: 300 MB in float32 at a vocabulary of 150,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequenced:
    """A prompt with one completion, and the spans of trained tokens in it."""

    ids: Sequence[int]
    spans: Sequence[Span]


def load_reference(folder: Path, *, dtype: str, device: str, threads: int, adapter: Path | None = None) -> Any:
    """The model, with a LoRA adapter beside it where one is given, frozen and without dropout.

    The thread count belongs to the last bits: a split sum rounds differently. For the same reason the adapter is not merged: the model
    that is trained from it is not merged either.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    if model.get_output_embeddings() is None:
        raise UserError(
            f"{type(model).__name__} names no output head", cure="a reference model with a language-model head"
        )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval().requires_grad_(False).to(device)


def log_probabilities(model: Any, sequences: Sequence[Sequenced], *, batch_tokens: int) -> list[np.ndarray]:
    """Of each sequence the float32 log-probabilities of its trained tokens in order.

    Which sequences share a batch follows from their lengths and `batch_tokens` alone: the same bits on every run.
    """
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(sequences)
    for batch in batches([len(s.ids) for s in sequences], batch_tokens=batch_tokens):
        for place, values in zip(batch, _batch(model, [sequences[i] for i in batch]), strict=True):
            found[place] = values
    return found


def batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Places of sequences, longest first, each batch padded to its longest within `batch_tokens`; a longer one goes alone."""
    waiting = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    while waiting:
        rows = max(1, batch_tokens // max(1, lengths[waiting[0]]))
        yield waiting[:rows]
        waiting = waiting[rows:]


def _batch(model: Any, sequences: Sequence[Sequenced]) -> list[np.ndarray]:
    width = max(len(s.ids) for s in sequences)
    ids = np.zeros((len(sequences), width), np.int64)
    trained = []
    for line, s in enumerate(sequences):
        ids[line, : len(s.ids)] = s.ids
        trained.append(np.concatenate([np.arange(a, b) for a, b in s.spans] or [np.zeros(0, np.int64)]) + line * width)
    places = np.concatenate(trained)
    device = model.device
    targets = torch.from_numpy(ids.reshape(-1)[places]).to(device)
    with torch.inference_mode(), _head_at(model, torch.from_numpy(places - 1).to(device)):
        # no mask: attention is causal, so the padding behind a row is never seen by its tokens
        logits = model(input_ids=torch.from_numpy(ids).to(device), attention_mask=None, use_cache=False).logits[0]
        parts = [
            -cross_entropy(part.float(), wanted, reduction="none")
            for part, wanted in zip(logits.split(ROWS_OF_LOGITS), targets.split(ROWS_OF_LOGITS), strict=True)
        ]
    values = torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.float32)
    return np.split(values, np.cumsum([len(t) for t in trained])[:-1])


@contextmanager
def _head_at(model: Any, places: torch.Tensor) -> Iterator[None]:
    """The head sees [1, places, width] instead of [batch, tokens, width]; soft caps and scales behind it apply as ever."""

    def select(_head: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0].flatten(0, 1).index_select(0, places)[None], *arguments[1:]

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
