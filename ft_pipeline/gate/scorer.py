"""Log-likelihoods of the choices of multiple-choice questions: fixed batches of similar length, log-softmax in fp32 where scored.

The prediction is the choice with the highest log-likelihood per character (`acc_norm` of lm-evaluation-harness); the first of equals.
The choices of a question share one pass over its context: they lie behind it side by side, each blind to the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ft_pipeline.errors import DataError
from ft_pipeline.gate.benchmarks import Question
from ft_pipeline.gate.samples import SCORE_DIGITS, NotANumber, Sample, excerpt, prompt_sha

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass: part of the result in low precision, so it is a constant and not a setting."""
SHARED_CONTEXT = {"llama", "qwen2", "qwen3", "mistral", "smollm3"}
"""Model types with rotary positions and full attention, where one pass over the context serves all choices exactly."""
Ticker = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scored:
    """One choice behind its context as token ids."""

    ids: tuple[int, ...]
    start: int
    """Index of the first token of the choice."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of a batch: a shared prefix, then tails that each see the prefix and themselves."""

    first: int
    """Index of the first tail in the flat list of choices."""
    prefix: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]
    unscored: tuple[int, ...]
    """Per tail: how many of its tokens still belong to the context."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequence."""
        return len(self.prefix) + sum(map(len, self.tails))


def answers(model: Any, tokenizer: Any, questions: Sequence[Question], *, tick: Ticker) -> list[Sample]:
    """One sample per question, in order; score 1.0 when the predicted choice is the right one. Raises NotANumber, DataError."""
    encoded = [encode(tokenizer, q) for q in questions]
    _fit(questions, encoded, model)
    sums = iter(log_likelihoods(model, encoded, tick))
    return [_sample(q, choices, [next(sums) for _ in choices]) for q, choices in zip(questions, encoded, strict=True)]


def encode(tokenizer: Any, question: Question) -> list[Scored]:
    """The choices as token ids: context and choice are tokenized together and cut where the context alone ends."""
    start = _start(tokenizer)
    context = start + tokenizer(question.context, add_special_tokens=not start)["input_ids"]
    scored = []
    for choice in question.choices:
        ids = start + tokenizer(question.context + choice, add_special_tokens=not start)["input_ids"]
        scored.append(Scored(tuple(ids), max(_common([context, ids[:-1]]), 1)))
    return scored


def log_likelihoods(model: Any, encoded: Sequence[Sequence[Scored]], tick: Ticker) -> list[float]:
    """Sum of the log-probabilities of each choice's tokens, in nats, question by question whatever the order of work."""
    rows = list(_rows(encoded, shared=_shares_context(model)))
    result, done = [0.0] * sum(map(len, encoded)), 0
    for batch in batches(rows):
        for index, value in _batch(model, batch):
            result[index] = value
            done += 1
        tick(done, len(result))
    return result


def batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows in batches of at most BATCH_TOKENS padded tokens, longest first: a function of the set of questions alone."""
    order = sorted(rows, key=lambda r: (-r.num_tokens, -len(r.prefix), r.prefix, r.tails))
    batch: list[Row] = []
    for row in order:
        if batch and (len(batch) + 1) * batch[0].num_tokens > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _rows(encoded: Sequence[Sequence[Scored]], *, shared: bool) -> Iterator[Row]:
    """One row per question, or one per choice where the model cannot share a context."""
    first = 0
    for choices in encoded:
        for group in [choices] if shared else [[c] for c in choices]:
            cut = max(min(_common([c.ids for c in group]), *(c.start for c in group)), 1)
            unscored = tuple(c.start - cut for c in group)
            yield Row(first, group[0].ids[:cut], tuple(c.ids[cut:] for c in group), unscored)
            first += len(group)


def _batch(model: Any, rows: Sequence[Row]) -> list[tuple[int, float]]:
    """(index of the choice, sum of its log-probabilities) of every tail of the rows. Padding is on the right."""
    width, device = max(r.num_tokens for r in rows), model.device
    pad = [[0] * (width - r.num_tokens) for r in rows]
    ids = torch.tensor(
        [[*r.prefix, *(t for tail in r.tails for t in tail), *p] for r, p in zip(rows, pad, strict=True)]
    )
    positions = torch.tensor([_positions(r) + p for r, p in zip(rows, pad, strict=True)])
    targets = [(b, *place) for b, row in enumerate(rows) for place in _targets(row)]
    where, at, token, owner = (list(column) for column in zip(*targets, strict=True))
    first = min(at)
    logits = model(
        input_ids=ids.to(device), position_ids=positions.to(device), attention_mask=_mask(rows, width, model),
        use_cache=False, logits_to_keep=torch.arange(first, max(at) + 1, device=device),
    ).logits  # fmt: skip
    scored = logits[where, [a - first for a in at]].float()
    picked = torch.log_softmax(scored, dim=-1)[range(len(token)), token].double().tolist()
    sums: dict[int, float] = {}
    for index, value in zip(owner, picked, strict=True):
        sums[index] = sums.get(index, 0.0) + value
    return list(sums.items())


def _positions(row: Row) -> list[int]:
    """Every tail counts on from the end of the prefix."""
    start = len(row.prefix)
    return [*range(start), *(start + i for tail in row.tails for i in range(len(tail)))]


def _targets(row: Row) -> Iterator[tuple[int, int, int]]:
    """(place whose logits predict it, token, index of the choice) of every scored token."""
    before = len(row.prefix)
    for k, (tail, unscored) in enumerate(zip(row.tails, row.unscored, strict=True)):
        for i in range(unscored, len(tail)):
            yield (before + i - 1 if i else len(row.prefix) - 1), tail[i], row.first + k
        before += len(tail)


def _mask(rows: Sequence[Row], width: int, model: Any) -> torch.Tensor:
    """Plain rows: 1 for tokens, 0 for padding. Shared rows: an additive mask [rows, 1, width, width], causal and blind between tails."""
    if all(len(r.tails) == 1 for r in rows):
        mask = torch.tensor([[1] * r.num_tokens + [0] * (width - r.num_tokens) for r in rows])
        return mask.to(model.device)
    segment = torch.tensor([_segments(r) + [-1] * (width - r.num_tokens) for r in rows])
    seen = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    seen &= torch.ones(width, width, dtype=torch.bool).tril()
    closed = torch.finfo(model.dtype).min
    return torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, closed)[:, None].to(model.device)


def _segments(row: Row) -> list[int]:
    """0 for the prefix, then 1, 2, ... per tail."""
    return [0] * len(row.prefix) + [k for k, tail in enumerate(row.tails, 1) for _ in tail]


def _shares_context(model: Any) -> bool:
    config = model.config
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config.model_type in SHARED_CONTEXT and not windowed


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix."""
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({s[i] for s in sequences}) > 1), shortest)


def _sample(question: Question, choices: Sequence[Scored], sums: Sequence[float]) -> Sample:
    if any(value != value for value in sums):
        raise NotANumber(
            f"question {question.id} got a log-likelihood that is not a number",
            why="A model that gives no finite numbers is broken; no verdict can rest on it.",
            cure="look at the training's loss curve; retrain with a lower learning rate",
        )
    norms = [round(s / max(len(c.strip()), 1), SCORE_DIGITS) for s, c in zip(sums, question.choices, strict=True)]
    chosen = norms.index(max(norms))
    return Sample(
        id=question.id,
        prompt_sha=prompt_sha([c.ids for c in choices]),
        prompt=excerpt(question.context),
        reference=question.choices[question.answer],
        output=json.dumps({"chosen": question.choices[chosen], "per_character": norms}, ensure_ascii=False),
        score=float(chosen == question.answer),
    )


def _start(tokenizer: Any) -> list[int]:
    """A first token for tokenizers that add none: without it the first word could not be scored."""
    if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return []
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if first is None else [first]


def _fit(questions: Sequence[Question], encoded: Sequence[Sequence[Scored]], model: Any) -> None:
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    for question, choices in zip(questions, encoded, strict=True):
        if (longest := max(len(c.ids) for c in choices)) > limit:
            raise DataError(
                f"question {question.id} has {longest} tokens, the model takes {limit}",
                why="A cut question is another question.",
                cure="shorten it, or leave it out of the suite",
            )
