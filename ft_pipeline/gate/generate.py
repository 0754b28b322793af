"""Greedy answers to many short prompts: left-padded batches, one KV cache per batch, the same tokens whatever the order of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ft_pipeline.encode.artifact import end_of_turn
from ft_pipeline.errors import DataError
from ft_pipeline.gate.samples import NotANumber

BATCH_ROWS = 64
"""Prompts of one batch: a constant, since in low precision a batch's shape is part of its result."""
LOOK_STEPS = 16
"""Steps between two looks for a text that ends an answer: words are decoded anew each time."""
Ticker = Callable[[int, int], None]
Ended = Callable[[list[int]], bool]


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    tick: Ticker,
    until: Sequence[str] = (),
) -> list[str]:
    """The answers as text without special tokens, in order; each stops at the end of its turn. Raises NotANumber, DataError.

    `until`: texts after which nothing of an answer is read, so that it need not go on; they and a few tokens more may be in it.
    """  # fmt: skip
    _fit(prompts, max_new_tokens, model)
    stops = stop_ids(tokenizer, model)
    answers, done = [""] * len(prompts), 0

    def ended(ids: list[int]) -> bool:
        return any(text in tokenizer.decode(ids, skip_special_tokens=True) for text in until)

    for batch in batches(prompts):
        made = _batch(model, [prompts[i] for i in batch], (stops, max_new_tokens, ended if until else None))
        for index, ids in zip(batch, made, strict=True):
            answers[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()
        done += len(batch)
        tick(done, len(prompts))
    return answers


def render(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Any = None) -> list[int]:
    """Token ids of a conversation up to the point where the assistant speaks, by the model's own chat template."""
    if not tokenizer.chat_template:
        raise DataError(
            "neither the base model nor the adapter has a chat template",
            why="Without it nobody knows how a conversation reaches the model.",
            cure="use a base with a chat template, or rows of prompt and completion",
        )
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(list(messages), tools=tools, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses a conversation of roles {[m['role'] for m in messages]}: {error}",
            why="What the template cannot say was never asked of the model.",
            cure="drop such rows, for example those with a system turn, or use a base whose template takes them",
        ) from None
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def stop_ids(tokenizer: Any, model: Any) -> set[int]:
    """Tokens that end an answer: end of text, what the generation config says, and what the template puts after a turn."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return {i for i in [*found, end_of_turn(tokenizer)] if i is not None}


def batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: a function of the set of prompts alone."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), list(prompts[i])))
    for start in range(0, len(order), BATCH_ROWS):
        yield order[start : start + BATCH_ROWS]


def _batch(model: Any, prompts: Sequence[Sequence[int]], end: tuple[set[int], int, Ended | None]) -> list[list[int]]:
    from transformers import DynamicCache

    (stops, max_new_tokens, ended), device = end, model.device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    ends = torch.tensor(sorted(stops) or [-1], device=device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, made = DynamicCache(), []
    for _ in range(max_new_tokens):
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        _finite(logits)
        step = logits.argmax(dim=-1)
        running = running & ~torch.isin(step, ends)
        made.append(torch.where(running, step, -1))
        if ended and len(made) % LOOK_STEPS == 0:
            running = running & ~torch.tensor([ended(ids) for ids in _written(made)], device=device)
        if not running.any():
            break
        ids, positions = step[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return _written(made)


def _written(made: Sequence[torch.Tensor]) -> list[list[int]]:
    """The tokens of each row so far. `made`: a step each, -1 for rows that have ended."""
    return [[token for token in row if token >= 0] for row in torch.stack(list(made), dim=1).tolist()]


def _finite(logits: torch.Tensor) -> None:
    if torch.isnan(logits).any():
        raise NotANumber(
            "the model's logits are not numbers",
            why="A model that gives no finite numbers is broken; no verdict can rest on it.",
            cure="look at the training's loss curve; retrain with a lower learning rate",
        )


def _fit(prompts: Sequence[Sequence[int]], max_new_tokens: int, model: Any) -> None:
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    if (longest := max(map(len, prompts), default=0)) + max_new_tokens > limit:
        raise DataError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's {limit}",
            why="A cut prompt is another prompt.",
            cure="lower max_new_tokens in the recipe's gate section, or drop the long rows",
        )
