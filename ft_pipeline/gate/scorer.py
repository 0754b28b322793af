"""Log-likelihoods of the choices of multiple-choice questions: fixed batches of similar length, log-softmax in fp32 where scored.

Equal to lm-evaluation-harness to the last digits of fp32 (test_official.py) and cheaper: a few-shot prefix is computed once and its keys and
values serve every question behind it; the choices of a question share one pass over its context, side by side, each blind to the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ft_pipeline.gate.benchmarks import Question
from ft_pipeline.gate.samples import SCORE_DIGITS, NotANumber, Sample, excerpt, prompt_sha
from ft_pipeline.gate.scorer_rows import Batch, Row, Scored, batches, encoded

SHARED_CONTEXT = {"llama", "qwen2", "qwen3", "mistral", "smollm3"}
"""Model types with rotary positions and full attention, where one pass over a context serves all that follows it exactly."""
LONGEST = 1 << 30
"""For a model without a limit."""
Ticker = Callable[[int, int], None]


def answers(model: Any, tokenizer: Any, questions: Sequence[Question], *, tick: Ticker) -> list[Sample]:
    """One sample per question, in order. Raises NotANumber, DataError."""
    choices = encoded(tokenizer, questions, limit=limit_of(model))
    sums = iter(log_likelihoods(model, choices, tick))
    return [sample(q, c, [next(sums) for _ in c]) for q, c in zip(questions, choices, strict=True)]


def limit_of(model: Any) -> int:
    """Tokens that the model reads at once."""
    return getattr(model.config, "max_position_embeddings", None) or LONGEST


def log_likelihoods(model: Any, choices: Sequence[Sequence[Scored]], tick: Ticker) -> list[float]:
    """Sum of the log-probabilities of each choice's tokens, in nats, question by question whatever the order of work."""
    result, done = [0.0] * sum(map(len, choices)), 0
    beginning: tuple[int, ...] = ()
    cache: Any = None
    for batch in batches(choices, shared=_shares_context(model)):
        if batch.shared != beginning:
            beginning, cache = batch.shared, _keys_and_values(model, batch.shared)
        for index, value in _batch(model, batch, cache):
            result[index] = value
            done += 1
        tick(done, len(result))
    return result


def sample(question: Question, choices: Sequence[Scored], sums: Sequence[float]) -> Sample:
    """What the log-likelihoods of a question's choices come to, by its metric. Raises NotANumber.

    acc: the likeliest choice; acc_norm: the likeliest per character of the choice; mc2: the probability of the right choices among all.
    The first of equals is chosen, as in lm-evaluation-harness.
    """
    if any(value != value for value in sums):
        raise NotANumber(
            f"question {question.id} got a log-likelihood that is not a number",
            why="A model that gives no finite numbers is broken; no verdict can rest on it.",
            cure="look at the training's loss curve; retrain with a lower learning rate",
        )
    per_character = question.metric == "acc_norm"
    lengths = [n if per_character else 1 for n in question.lengths]
    values = [round(s / n, SCORE_DIGITS) for s, n in zip(sums, lengths, strict=True)]
    chosen = values.index(max(values))
    said = {"chosen": question.choices[chosen], "per_character" if per_character else "log_likelihood": values}
    return Sample(
        id=question.id,
        prompt_sha=prompt_sha([c.ids for c in choices]),
        prompt=excerpt(question.context),
        reference=question.choices[question.answer],
        output=json.dumps(said, ensure_ascii=False),
        score=_mass(question, sums) if question.metric == "mc2" else float(chosen in question.rights),
        stratum=question.stratum,
    )


def _mass(question: Question, sums: Sequence[float]) -> float:
    """Probability of the right choices as a share of that of all."""
    highest = max(sums)
    weights = [math.exp(s - highest) for s in sums]
    return round(math.fsum(weights[i] for i in question.rights) / math.fsum(weights), SCORE_DIGITS)


def _keys_and_values(model: Any, beginning: Sequence[int]) -> Any:
    """What the model remembers of a beginning; None for no beginning."""
    from transformers import DynamicCache

    if not beginning:
        return None
    cache = DynamicCache()
    ids = torch.tensor([list(beginning)], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _for_rows(cache: Any, rows: int) -> Any:
    """A copy for a batch: a forward pass appends to it."""
    from transformers import DynamicCache

    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), index)
    return copy


def _batch(model: Any, batch: Batch, cache: Any) -> list[tuple[int, float]]:
    """(index of the choice, sum of its log-probabilities) of every tail of the rows. Padding is on the right."""
    rows, before = batch.rows, len(batch.shared)
    width, device = max(r.num_tokens for r in rows), model.device
    pad = [[0] * (width - r.num_tokens) for r in rows]
    ids = [[*r.prefix, *(t for tail in r.inputs for t in tail), *p] for r, p in zip(rows, pad, strict=True)]
    positions = [[before + i for i in _positions(r)] + p for r, p in zip(rows, pad, strict=True)]
    targets = [(b, *place) for b, row in enumerate(rows) for place in _targets(row)]
    where, at, token, owner = (list(column) for column in zip(*targets, strict=True))
    kept = sorted({*at})
    past = {"past_key_values": _for_rows(cache, len(rows)), "use_cache": True} if cache else {"use_cache": False}
    logits = model(
        input_ids=torch.tensor(ids, device=device), position_ids=torch.tensor(positions, device=device),
        attention_mask=_mask(rows, (before, width), model), logits_to_keep=torch.tensor(kept, device=device), **past,
    ).logits  # fmt: skip
    place_of = {place: i for i, place in enumerate(kept)}
    scored = logits[where, [place_of[a] for a in at]].float()
    picked = scored[range(len(token)), token] - torch.logsumexp(scored, dim=-1)
    sums: dict[int, float] = {}
    for index, value in zip(owner, picked.double().tolist(), strict=True):
        sums[index] = sums.get(index, 0.0) + value
    return list(sums.items())


def _positions(row: Row) -> list[int]:
    """Every tail counts on from the end of the context."""
    start = len(row.prefix)
    return [*range(start), *(start + i for tail in row.inputs for i in range(len(tail)))]


def _targets(row: Row) -> list[tuple[int, int, int]]:
    """(place whose logits predict it, token, index of the choice) of every scored token."""
    found, before = [], len(row.prefix)
    for k, (tail, unscored) in enumerate(zip(row.tails, row.unscored, strict=True)):
        for i in range(unscored, len(tail)):
            found.append((before + i - 1 if i else len(row.prefix) - 1, tail[i], row.first + k))
        before += len(tail) - 1
    return found


def _mask(rows: Sequence[Row], sizes: tuple[int, int], model: Any) -> torch.Tensor:
    """`sizes`: tokens of the shared beginning, and of the longest row. Rows without tails: 1 for tokens, 0 for padding [rows, both];
    else an additive mask [rows, 1, width, both], causal and blind between tails."""
    before, width = sizes
    if all(len(r.tails) == 1 or not any(r.inputs) for r in rows):
        mask = torch.tensor([[1] * (before + r.num_tokens) + [0] * (width - r.num_tokens) for r in rows])
        return mask.to(model.device)
    segment = torch.tensor([_segments(r) + [-1] * (width - r.num_tokens) for r in rows])
    seen = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    seen &= torch.ones(width, width, dtype=torch.bool).tril()
    seen = torch.cat([torch.ones(len(rows), width, before, dtype=torch.bool), seen], dim=2)
    closed = torch.finfo(model.dtype).min
    return torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, closed)[:, None].to(model.device)


def _segments(row: Row) -> list[int]:
    """0 for the context, then 1, 2, ... per tail."""
    return [0] * len(row.prefix) + [k for k, tail in enumerate(row.inputs, 1) for _ in tail]


def _shares_context(model: Any) -> bool:
    config = model.config
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config.model_type in SHARED_CONTEXT and not windowed
