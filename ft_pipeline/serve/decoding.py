"""Rows that share forward passes, left-padded: new rows are prefilled and merged in, finished rows leave and give their cache back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from ft_pipeline.serve.batching import Row, shared_fate
from ft_pipeline.serve.engine import Generation


class Forward(Protocol):
    """`serve.shelf.Shelf.logits`."""

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, *, cache: DynamicCache, adapters: Sequence[str | None]
    ) -> torch.Tensor:
        """Ids [rows, new], mask [rows, cached + new] -> logits of the last position, float32 [rows, vocabulary]."""
        ...


class Lane:
    """One running batch. Row i's tokens end at the right edge; what is left of them is masked."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._empty()

    def _empty(self) -> None:
        self.rows: list[Row] = []
        self._samplers: list[Sampler] = []
        self._last: list[int] = []
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Reads the prompts in one pass of their own, gives each row its first token, and merges them in."""
        new = Lane(self._forward)
        new.rows, new._samplers = list(rows), [Sampler(row.request) for row in rows]
        ids, new._mask = _left_padded([row.prompt_tokens for row in rows])
        with shared_fate(rows):
            new._advance(ids)
            new._leave()
            self._merge(new)

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row. An error ends the rows of this lane and empties it."""
        with shared_fate(self.rows):
            self._leave()  # whoever stopped reading since the last step
            if self.rows:
                self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
                self._advance(torch.tensor(self._last)[:, None])
        self._leave()

    def _advance(self, ids: torch.Tensor) -> None:
        logits = self._forward(ids, self._mask, cache=self._cache, adapters=[row.adapter for row in self.rows])
        greedy = logits.argmax(dim=-1).tolist()
        self._last = [
            likeliest if sampler.greedy else sampler.choose(logits[at])
            for at, (likeliest, sampler) in enumerate(zip(greedy, self._samplers, strict=True))
        ]
        for at, (row, token) in enumerate(zip(self.rows, self._last, strict=True)):
            if row.request.logprobs is not None:
                row.note(token, *_logprobs(logits[at], token, row.request.logprobs))
            row.push(token)

    def _leave(self) -> None:
        """Drops finished rows, and the columns that only they needed."""
        stay = [at for at, row in enumerate(self.rows) if not row.finish]
        if len(stay) == len(self.rows):
            return
        if not stay:
            self._empty()
            return
        self.rows = [self.rows[at] for at in stay]
        self._samplers = [self._samplers[at] for at in stay]
        self._last = [self._last[at] for at in stay]
        mask = self._mask[stay]
        unused = int(mask.any(dim=0).int().argmax())
        self._mask = mask[:, unused:]
        self._cache = _cache_of([(k[stay, :, unused:], v[stay, :, unused:]) for k, v in _pairs(self._cache)])

    def _merge(self, new: Lane) -> None:
        if not new.rows:
            return
        width = max(self._mask.shape[1], new._mask.shape[1])
        ours, theirs = width - self._mask.shape[1], width - new._mask.shape[1]
        if self.rows:
            pairs = zip(_pairs(self._cache), _pairs(new._cache), strict=True)
            self._cache = _cache_of(
                [
                    [torch.cat([_widened(a, ours), _widened(b, theirs)]) for a, b in zip(old, fresh, strict=True)]
                    for old, fresh in pairs
                ]
            )
            self._mask = torch.cat([pad(self._mask, (ours, 0)), pad(new._mask, (theirs, 0))])
        else:
            self._cache, self._mask = new._cache, new._mask
        self.rows += new.rows
        self._samplers += new._samplers
        self._last += new._last


class Sampler:
    """Chooses the next token of one row."""

    def __init__(self, request: Generation) -> None:
        self._temperature, self._top_p = request.temperature, request.top_p
        self._random = torch.Generator()
        if request.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(request.seed)

    @property
    def greedy(self) -> bool:
        """True at temperature 0: the likeliest token."""
        return self._temperature == 0

    def choose(self, logits: torch.Tensor) -> int:
        """A token id from the smallest set of tokens that holds `top_p` of the probability."""
        probabilities, order = torch.softmax(logits / self._temperature, dim=-1).sort(descending=True)
        outside = probabilities.cumsum(0) - probabilities >= self._top_p
        return int(order[torch.multinomial(probabilities.masked_fill(outside, 0), 1, generator=self._random)])


def _logprobs(logits: torch.Tensor, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Of a token, and the `top` likeliest with theirs."""
    every = logits.log_softmax(dim=-1)
    values, ids = every.topk(min(top, len(every)))
    return float(every[token]), list(zip(ids.tolist(), values.tolist(), strict=True))


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [rows, longest]; padding is masked, so its id does not matter."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _pairs(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, [rows, heads, tokens, head_dim]."""
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _cache_of(layers: Sequence[Sequence[torch.Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for at, (keys, values) in enumerate(layers):
        cache.update(keys, values, at)
    return cache


def _widened(states: torch.Tensor, columns: int) -> torch.Tensor:
    """Keys or values with masked columns on the left."""
    return pad(states, (0, 0, columns, 0))
