"""Log-likelihoods of the choices of multiple-choice questions: fixed batches of similar length, log-softmax in fp32 where scored.

The prediction is the choice with the highest log-likelihood per character (`acc_norm` of lm-evaluation-harness); the first of equals.
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
Ticker = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scored:
    """One choice behind its context as token ids."""

    ids: tuple[int, ...]
    start: int
    """Index of the first token of the choice."""


def answers(model: Any, tokenizer: Any, questions: Sequence[Question], *, tick: Ticker) -> list[Sample]:
    """One sample per question, in order; score 1.0 when the predicted choice is the right one. Raises NotANumber, DataError."""
    encoded = [encode(tokenizer, q) for q in questions]
    _fit(questions, encoded, model)
    flat = [choice for choices in encoded for choice in choices]
    sums = iter(log_likelihoods(model, flat, tick))
    return [_sample(q, choices, [next(sums) for _ in choices]) for q, choices in zip(questions, encoded, strict=True)]


def encode(tokenizer: Any, question: Question) -> list[Scored]:
    """The choices as token ids: context and choice are tokenized together and cut where the context alone ends."""
    start = _start(tokenizer)
    context = start + tokenizer(question.context, add_special_tokens=not start)["input_ids"]
    scored = []
    for choice in question.choices:
        ids = start + tokenizer(question.context + choice, add_special_tokens=not start)["input_ids"]
        cut = min(len(context), len(ids) - 1)
        while cut > 1 and ids[:cut] != context[:cut]:
            cut -= 1
        scored.append(Scored(tuple(ids), max(cut, 1)))
    return scored


def log_likelihoods(model: Any, sequences: Sequence[Scored], tick: Ticker) -> list[float]:
    """Sum of the log-probabilities of each choice's tokens, in nats, in the given order whatever the order of work."""
    result, done = [0.0] * len(sequences), 0
    for batch in batches(sequences):
        for index, value in zip(batch, _batch(model, [sequences[i] for i in batch]), strict=True):
            result[index] = value
        done += len(batch)
        tick(done, len(sequences))
    return result


def batches(sequences: Sequence[Scored]) -> Iterator[list[int]]:
    """Indices in batches of at most BATCH_TOKENS padded tokens, longest first: a function of the set of sequences alone."""
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i].ids), -sequences[i].start, sequences[i].ids))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(sequences[batch[0]].ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _batch(model: Any, sequences: Sequence[Scored]) -> list[float]:
    """Right-padded rows: causal attention never looks at the padding, so positions need no shift."""
    width = max(len(s.ids) for s in sequences)
    device = model.device
    ids = torch.tensor([[*s.ids, *[0] * (width - len(s.ids))] for s in sequences], device=device)
    lengths = torch.tensor([len(s.ids) for s in sequences], device=device)
    starts = torch.tensor([s.start for s in sequences], device=device)
    places = torch.arange(width, device=device)
    first = int(starts.min()) - 1
    kept = places[first : width - 1]
    logits = model(
        input_ids=ids, attention_mask=(places < lengths[:, None]).long(), use_cache=False, logits_to_keep=kept
    ).logits  # fmt: skip
    scored = (kept + 1 >= starts[:, None]) & (kept + 1 < lengths[:, None])
    picked = torch.log_softmax(logits[scored].float(), dim=-1).gather(1, ids[:, first + 1 :][scored][:, None])[:, 0]
    per_token = torch.zeros(scored.shape, dtype=torch.float64, device=device)
    per_token[scored] = picked.double()
    return per_token.sum(dim=1).tolist()


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
