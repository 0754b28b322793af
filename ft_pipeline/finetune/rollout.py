"""Completions sampled from the model that is being trained: left-padded prompts, one prefill a prompt, one KV cache, log-probabilities kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ft_pipeline.encode.artifact import Prompt, Window, end_of_turn
from ft_pipeline.finetune import attention
from ft_pipeline.finetune.batches import Batch, batch_of
from ft_pipeline.finetune.model import Trainee

PACKED = 4
"""Prompts that the boundary check looks at together."""
ROWS = 256
"""Completions that are generated at once: a constant, since the shape of a batch is part of its last bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask(Window):
    """A prompt as a window of one row, with the answer that a verifier expects. All of it counts as trained where a check asks."""

    answer: str

    @property
    def prompt_ids(self) -> list[int]:
        """Up to where the model begins to answer."""
        return self.ids.tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How completions are drawn."""

    count: int
    """Completions of each prompt."""
    max_new_tokens: int
    stops: frozenset[int]
    temperature: float = 1.0
    greedy: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One completion. `ids` holds the stop token when there was one; it is trained like any other."""

    prompt_ids: Sequence[int]
    ids: list[int]
    logprobs: list[float]
    """Of each token in nats, as it was sampled, at the sampling's temperature."""
    finished: bool
    """False when max_new_tokens cut it."""


def ask_of(prompt: Prompt) -> Ask:
    """An item of a sampler."""
    ids = np.array(prompt.prompt_ids, np.int32)
    return Ask(ids=ids, spans=((1, len(ids)),), lengths=(len(ids),), row_ids=(prompt.row_id,), answer=prompt.answer)


def side_by_side(items: Sequence[Any]) -> Sequence[Any]:
    """Windows for the boundary check: of single rows, some packed as a training batch packs them; other items as they are."""
    # a window of the shards is packed already, even where it holds one row
    asks = [item for item in items[: PACKED * PACKED] if type(item) is not Window and len(item.lengths) == 1]
    groups = [asks[start : start + PACKED] for start in range(0, len(asks), PACKED)]
    return [_packed(group) for group in groups] if groups else items


def _packed(asks: Sequence[Window]) -> Window:
    starts = np.cumsum([0, *(len(ask.ids) for ask in asks)]).tolist()
    return Window(
        ids=np.concatenate([ask.ids for ask in asks]), lengths=tuple(len(ask.ids) for ask in asks),
        spans=tuple((start + 1, end) for start, end in pairwise(starts)), row_ids=tuple(ask.row_ids[0] for ask in asks),
    )  # fmt: skip


def sample(trainee: Trainee, prompts: Sequence[Sequence[int]], how: Sampling) -> list[Completion]:
    """`count` completions of each prompt, prompt by prompt. Draws from torch's global generator; dropout is off meanwhile."""
    made: list[list[Completion]] = [[] for _ in prompts]
    # prompts of like length together: padding is computed too
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    size = max(1, ROWS // how.count)
    with torch.no_grad(), trainee.precision(), generating(trainee):
        for start in range(0, len(order), size):
            places = order[start : start + size]
            found = _sampled(trainee, [prompts[p] for p in places], how)
            for number, place in enumerate(places):
                made[place] = found[number * how.count : (number + 1) * how.count]
    return [completion for group in made for completion in group]


@contextmanager
def generating(trainee: Trainee) -> Iterator[None]:
    """Eval mode, and attention that reads a mask and a cache: packed attention has neither."""
    with still(trainee):
        if trainee.flat:
            trainee.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            if trainee.flat:
                trainee.model.set_attn_implementation(attention.NAME)


@contextmanager
def still(trainee: Trainee) -> Iterator[None]:
    """Eval mode: no dropout."""
    was_training = trainee.model.training
    trainee.model.eval()
    try:
        yield
    finally:
        trainee.model.train(was_training)


def _sampled(trainee: Trainee, prompts: Sequence[Sequence[int]], how: Sampling) -> list[Completion]:
    from transformers import DynamicCache

    ids, mask, positions = left_padded(prompts, device=trainee.device)
    cache = DynamicCache()
    logits = _next(trainee.model, (ids, mask, positions), cache)
    if how.count > 1:
        cache.batch_repeat_interleave(how.count)
    logits, mask, positions = (t.repeat_interleave(how.count, dim=0) for t in (logits, mask, positions[:, -1:]))
    stops = torch.tensor(sorted(how.stops) or [-1], device=trainee.device)
    running = torch.ones(len(logits), dtype=torch.bool, device=trainee.device)
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    while True:
        scores = torch.log_softmax(logits.float() / how.temperature, dim=-1)
        token = scores.argmax(dim=-1, keepdim=True) if how.greedy else torch.multinomial(scores.exp(), 1)
        steps.append((token[:, 0], scores.gather(1, token)[:, 0], running))
        running = running & ~torch.isin(token[:, 0], stops)
        if len(steps) == how.max_new_tokens or not running.any():
            break
        positions = positions + 1
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        logits = _next(trainee.model, (token, mask, positions), cache)
    return _completions(prompts, steps, running)


def left_padded(prompts: Sequence[Sequence[int]], *, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[P, W] ids, mask and positions; position 0 is the first real token of each prompt, whatever is before it."""
    width = max(map(len, prompts))
    ids, mask, positions = (np.zeros((len(prompts), width), np.int64) for _ in range(3))
    for row, prompt in enumerate(prompts):
        start = width - len(prompt)
        ids[row, start:], mask[row, start:], positions[row, start:] = prompt, 1, np.arange(len(prompt))
    a, b, c = (torch.from_numpy(t).to(device) for t in (ids, mask, positions))
    return a, b, c


def _next(model: Any, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], cache: Any) -> torch.Tensor:
    ids, mask, positions = inputs
    return model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits[:, -1]  # fmt: skip


def _completions(prompts: Sequence[Sequence[int]], steps: Sequence[Any], running: torch.Tensor) -> list[Completion]:
    tokens, scores, alive = (torch.stack(column, dim=1).cpu() for column in zip(*steps, strict=True))
    lengths, cut = alive.sum(dim=1).tolist(), running.tolist()
    count = len(lengths) // len(prompts)
    return [
        Completion(
            prompt_ids=prompts[row // count], ids=tokens[row, :length].tolist(), logprobs=scores[row, :length].tolist(),
            finished=not cut[row],
        )
        for row, length in enumerate(lengths)
    ]  # fmt: skip


def batch_of_completions(trainee: Trainee, completions: Sequence[Completion]) -> Batch:
    """Prompts with their completions as rows of a training batch, without padding where the model takes that; completions are trained."""
    rows = []
    for completion in completions:
        start, ids = len(completion.prompt_ids), np.array([*completion.prompt_ids, *completion.ids], np.int32)
        rows.append(Window(ids=ids, spans=((start, len(ids)),), lengths=(len(ids),), row_ids=("",)))
    return batch_of(rows, flat=trainee.flat, device=trainee.device)


def stop_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Tokens that end an answer: end of text, what the generation config says, and what the template puts after a turn."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return frozenset(i for i in [*found, end_of_turn(tokenizer)] if i is not None)
