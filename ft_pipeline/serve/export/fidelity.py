"""How far an export is from what it was made from: both read the same answers, token by token, and say what they would have said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch

from ft_pipeline.errors import DataError
from ft_pipeline.serve.export.policy import Fidelity

BATCH_ROWS = 4
"""Logits of a batch are [rows, tokens, vocabulary]: 4 rows of 500 tokens and 128k words in bfloat16 are 0.5 GB, twice."""
MOST_ROWS = 512
"""Rows that are read, chosen by the digest of their ids: at 100 tokens an answer the mean KL is known to some percent."""
Ticker = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A conversation up to and with its answer."""

    id: str
    ids: tuple[int, ...]
    answer_from: int
    """Place of the first token of the answer; the last one ends the turn."""


@dataclass
class _Sums:
    tokens: int = 0
    kl: float = 0.0
    equal: int = 0
    surprise: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Negative log-likelihood of the answers, nats: of the reference, of the export."""


def chosen(texts: Sequence[Text]) -> list[Text]:
    """At most MOST_ROWS of them, the same whatever their order."""
    return sorted(texts, key=lambda t: sha256(t.id.encode()).hexdigest())[:MOST_ROWS]


@torch.inference_mode()
def compare(reference: Any, export: Any, texts: Sequence[Text], *, tick: Ticker) -> Fidelity:
    """What the two models say to the texts. Raises DataError when no text fits."""
    limit = getattr(export.config.get_text_config(), "max_position_embeddings", None) or math.inf
    asked = [t for t in texts if len(t.ids) <= limit and t.answer_from < len(t.ids)]
    if not asked:
        raise DataError(
            f"none of {len(texts)} rows has an answer that the model can read",
            why="Nothing could be compared, and an export without a comparison is not registered.",
            cure="give the recipe a holdout: `curate.splits.holdout`",
        )
    sums, done = _Sums(), 0
    for batch in _batches(asked):
        _add(sums, batch, (_logits(reference, batch), _logits(export, batch)))
        done += len(batch)
        tick(done, len(asked))
    perplexity = [math.exp(min(s / sums.tokens, 700.0)) for s in sums.surprise]
    return Fidelity(
        rows=len(asked), tokens=sums.tokens, kl=max(0.0, sums.kl / sums.tokens), top1=sums.equal / sums.tokens,
        reference_perplexity=perplexity[0], perplexity=perplexity[1], skipped=len(texts) - len(asked),
    )  # fmt: skip


def _batches(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Of similar length, longest first."""
    order = sorted(texts, key=lambda t: (-len(t.ids), t.id))
    for start in range(0, len(order), BATCH_ROWS):
        yield order[start : start + BATCH_ROWS]


def _logits(model: Any, batch: Sequence[Text]) -> torch.Tensor:
    """Logits of the places that predict the answers, float32 [tokens of all answers, vocabulary]. Padding is on the right, unseen."""
    width = max(len(t.ids) for t in batch)
    ids = torch.tensor([[*t.ids, *[0] * (width - len(t.ids))] for t in batch], device=model.device)
    mask = torch.tensor([[1] * len(t.ids) + [0] * (width - len(t.ids)) for t in batch], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    parts = [logits[row, t.answer_from - 1 : len(t.ids) - 1] for row, t in enumerate(batch)]
    return torch.cat(parts).float()


def _add(sums: _Sums, batch: Sequence[Text], logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    reference, export = logits
    said = torch.tensor([i for t in batch for i in t.ids[t.answer_from :]], device=reference.device)[:, None]
    ours, theirs = reference.log_softmax(dim=-1), export.to(reference.device).log_softmax(dim=-1)
    sums.tokens += len(said)
    sums.kl += float((ours.exp() * (ours - theirs)).sum(dim=-1).double().sum())
    sums.equal += int((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
    for index, arm in enumerate((ours, theirs)):
        sums.surprise[index] -= float(arm.gather(1, said).double().sum())
