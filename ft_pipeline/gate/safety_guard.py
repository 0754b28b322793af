"""A guard model through transformers: one pass over [user, assistant], and the probability of `unsafe` at the first word of its verdict.

Llama Guard says `safe` or `unsafe` and then the categories; Llama Guard 3 and 4 begin with empty lines, which are stepped over.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.errors import DataError
from ft_pipeline.judging.forms import SAFE, UNSAFE, Form
from ft_pipeline.judging.judge import NoReply, Reply
from ft_pipeline.judging.local import load

BLANK_STEPS = 3
"""Empty tokens that may stand before the verdict."""


class Guard:
    """The guard in a Hugging Face folder; loaded when first asked. Its replies read `unsafe 0.931204`."""

    def __init__(self, folder: Path, *, device: str = "cpu", threshold: float = 0.5) -> None:
        self._folder, self._device, self._threshold = folder, device, threshold
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """As Speaker. Raises NoReply where the conversation does not fit, DataError for a model that is no guard."""
        with self._lock, torch.inference_mode():
            self._loaded = self._loaded or load(self._folder, self._device)
            probability = unsafe_probability(*self._loaded, list(form.messages(fields)))
        return Reply(text=f"{UNSAFE if probability >= self._threshold else SAFE} {probability:.6f}")


def unsafe_probability(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> float:
    """P(unsafe) against P(safe), in [0, 1]."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    if ids.shape[1] + BLANK_STEPS > limit:
        raise NoReply("refused", f"{ids.shape[1]} tokens exceed the guard's {limit}")
    safe, unsafe = verdict_tokens(tokenizer)
    for _ in range(BLANK_STEPS):
        logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
        best = logits.argmax()
        if int(best) in safe | unsafe or tokenizer.decode([int(best)]).strip():
            break
        ids = torch.cat([ids, best.reshape(1, 1)], dim=1)
    logs = torch.log_softmax(logits, dim=-1)
    bad, good = (torch.logsumexp(logs[sorted(tokens)], dim=0) for tokens in (unsafe, safe))
    if not torch.isfinite(bad - good):
        raise NoReply("garbage", "the guard's logits are not numbers")
    return round(float(torch.sigmoid(bad - good)), 6)


def verdict_tokens(tokenizer: Any) -> tuple[set[int], set[int]]:
    """The first tokens of `safe` and of `unsafe`, at a line's start or after a space. Raises DataError when they are one and the same."""
    safe, unsafe = (
        {tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (word, f" {word}")}
        for word in (SAFE, UNSAFE)
    )
    shared = safe & unsafe  # a tokenizer that writes the space as a token of its own
    if not safe - shared or not unsafe - shared:
        raise DataError(
            "the guard's tokenizer begins `safe` and `unsafe` with the same token",
            why="Its verdict cannot be read from one pass.",
            cure="take a Llama-Guard-style model, or serve it and use `scorer: endpoint`",
        )
    return safe - shared, unsafe - shared
