"""What the scorer sends through a model: token ids cut as lm-evaluation-harness cuts them, rows that share a context, bundles of rows
that share a few-shot prefix, batches of fixed composition. No torch here.

One fixed few-shot prefix, computed once, and one pass over a question for all its choices: full MMLU 5-shot takes 1.5 M tokens through the
model where lm-evaluation-harness 0.4.13 on vLLM takes 38.4 M (counted with a cl100k-like tokenizer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import DataError
from ft_pipeline.gate.benchmarks import Question

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass: part of the result in low precision, so it is a constant and not a setting."""
CACHE_TOKENS = 32768
"""Keys and values of one forward pass, the shared prefix counted once for each row: 4 GiB for an 8B model with 128 KiB a token."""
WORTH_TOKENS = 1024
"""A beginning that saves fewer tokens is not worth passes of its own: reading the weights of an 8B model costs a GPU as much."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One choice behind its context as token ids."""

    ids: tuple[int, ...]
    start: int
    """Index of the first token of the choice."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of a batch: a context, then tails that each see the context and themselves."""

    first: int
    """Index of the first tail in the flat list of choices."""
    prefix: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]
    """Their last tokens are scored and never read, so they are no input."""
    unscored: tuple[int, ...]
    """Per tail: how many of its tokens still belong to the context."""

    @property
    def inputs(self) -> tuple[tuple[int, ...], ...]:
        """What of each tail the model reads."""
        return tuple(tail[:-1] for tail in self.tails)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.prefix) + sum(len(tail) - 1 for tail in self.tails)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one forward pass behind a shared beginning, which is computed once and is empty where nothing is shared."""

    shared: tuple[int, ...]
    rows: tuple[Row, ...]
    """Without the shared beginning."""


def encoded(tokenizer: Any, questions: Sequence[Question], *, limit: int) -> list[list[Scored]]:
    """The choices of every question as token ids. `limit`: tokens that the model reads. Raises DataError.

    The rules of lm-evaluation-harness (`_encode_pair`): spaces at the end of a context go to the choice, context and choice are tokenized
    together and cut where the context alone ends; an official question that is too long loses tokens on the left, any other is refused.
    """
    starts = [_start(tokenizer, q) for q in questions]
    flat = iter(_tokens(tokenizer, [t for q, (c, _) in zip(questions, starts, strict=True) for t in (c, *_wholes(q))]))
    result = []
    for question, (_, first) in zip(questions, starts, strict=True):
        context = len(next(flat)) + len(first)
        choices = [_scored(question, [*first, *next(flat)], max(context, 1)) for _ in question.choices]
        result.append([_fitted(question, c, limit) for c in choices])
    return result


def batches(encodings: Sequence[Sequence[Scored]], *, shared: bool) -> Iterator[Batch]:
    """Fixed batches, longest rows first: a function of the set of questions alone. `shared`: whether the model can share a context."""
    rows = list(_rows(encodings, shared=shared))
    for bundle in _bundles(rows) if shared else [((), rows)]:
        yield from _batches(*bundle)


def num_tokens(encodings: Sequence[Sequence[Scored]]) -> int:
    """Tokens that the model computes for all of them, padding not counted."""
    beginnings: dict[tuple[int, ...], None] = {}
    total = 0
    for batch in batches(encodings, shared=True):
        total += sum(row.num_tokens for row in batch.rows)
        beginnings[batch.shared] = None
    return total + sum(map(len, beginnings))


def _start(tokenizer: Any, question: Question) -> tuple[str, list[int]]:
    """The context without the spaces at its end, and a first token for a context of no tokens: without it no word could be scored."""
    context = (question.prefix + question.context).rstrip()
    if context or tokenizer("")["input_ids"]:
        return context, []
    first = _first_token(tokenizer)
    if first is None:
        raise DataError(
            f"question {question.id} has no context, and the tokenizer has no token to begin with",
            why="The first token of a choice needs something before it.",
            cure="give the question a context",
        )
    return "", [first]


def _first_token(tokenizer: Any) -> int | None:
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def _wholes(question: Question) -> list[str]:
    return [question.prefix + question.context + question.delimiter + choice for choice in question.choices]


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids with the tokenizer's own special tokens; a text that brings its first token itself gets no second one."""
    first = _first_token(tokenizer)
    begins = tokenizer.decode([first]) if first is not None else ""
    own = [bool(begins) and text.startswith(begins) for text in texts]
    made: dict[bool, Iterator[list[int]]] = {}
    for without in {*own}:
        some = [t for t, o in zip(texts, own, strict=True) if o is without]
        made[without] = iter(tokenizer(some, add_special_tokens=not without)["input_ids"])
    return [next(made[o]) for o in own]


def _scored(question: Question, ids: list[int], start: int) -> Scored:
    if start >= len(ids):
        raise DataError(
            f"question {question.id}: a choice adds no token to its context",
            why="What has no token has no probability.",
            cure="begin the choice with a space or another letter",
        )
    return Scored(tuple(ids), start)


def _fitted(question: Question, choice: Scored, limit: int) -> Scored:
    """The last token is not read, so one more than the limit fits."""
    excess = len(choice.ids) - limit - 1
    if excess <= 0:
        return choice
    if not question.is_official or choice.start - excess < 1:
        raise DataError(
            f"question {question.id} has {len(choice.ids)} tokens, the model takes {limit}",
            why="A cut question is another question.",
            cure="shorten it, or leave it out of the suite",
        )
    return Scored(choice.ids[excess:], choice.start - excess)


def _rows(encodings: Sequence[Sequence[Scored]], *, shared: bool) -> Iterator[Row]:
    """One row per question, or one per choice where the model cannot share a context or the choices were cut apart."""
    first = 0
    for choices in encodings:
        together = shared and _common([c.ids for c in choices]) > 0
        for group in [choices] if together else [[c] for c in choices]:
            cut = min(_common([c.ids for c in group]), *(c.start for c in group))
            unscored = tuple(c.start - cut for c in group)
            yield Row(first, group[0].ids[:cut], tuple(c.ids[cut:] for c in group), unscored)
            first += len(group)


def _bundles(rows: Sequence[Row]) -> Iterator[tuple[tuple[int, ...], list[Row]]]:
    """Rows by the beginning that they share: neighbours in sorted order. Rows that share too little come last, as they are."""
    order = sorted(rows, key=lambda r: (r.prefix, r.tails))
    start, rest = 0, []
    while start < len(order):
        end, common = _stretch(order, start)
        if (end - start - 1) * common >= WORTH_TOKENS:
            kept = [Row(r.first, r.prefix[common:], r.tails, r.unscored) for r in order[start:end]]
            yield order[start].prefix[:common], kept
        else:
            rest += order[start:end]
        start = end
    if rest:
        yield (), rest


def _stretch(order: Sequence[Row], start: int) -> tuple[int, int]:
    """(end of the rows that share a beginning with the one at `start`, its length). Each row keeps a token of its own.

    A beginning may shrink to half of what the first two rows share, not further: then another one begins.
    """
    first = order[start].prefix
    common, floor, end = len(first) - 1, 1, start + 1
    while end < len(order):
        both = min(common, len(order[end].prefix) - 1, _common([first, order[end].prefix]))
        if both < floor:
            break
        common, floor, end = both, max(floor, both // 2), end + 1
    return end, common


def _batches(shared: tuple[int, ...], rows: Sequence[Row]) -> Iterator[Batch]:
    order = sorted(rows, key=lambda r: (-r.num_tokens, -len(r.prefix), r.prefix, r.tails))
    batch: list[Row] = []
    for row in order:
        width = batch[0].num_tokens if batch else 0
        if batch and (
            (len(batch) + 1) * width > BATCH_TOKENS or (len(batch) + 1) * (width + len(shared)) > CACHE_TOKENS
        ):
            yield Batch(shared, tuple(batch))
            batch = []
        batch.append(row)
    if batch:
        yield Batch(shared, tuple(batch))


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix."""
    shortest = min(map(len, sequences))
    low, high = 0, shortest
    first = sequences[0]
    while low < high:
        middle = (low + high + 1) // 2
        if all(s[:middle] == first[:middle] for s in sequences):
            low = middle
        else:
            high = middle - 1
    return low
