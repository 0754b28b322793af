"""Tasks of the search for duplicates: the pairs of one band, the exact similarities of some pairs. Any process can do them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ft_pipeline.curate.bands import band_pairs
from ft_pipeline.curate.examined import Examined
from ft_pipeline.curate.overlap import jaccard_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Similar:
    """Pairs of positions, left < right, with what is known of their likeness. NaN: not needed for the decision."""

    left: np.ndarray
    right: np.ndarray
    band: np.ndarray
    """The first band that brought them together; -1: none did."""
    whole: np.ndarray
    prompt: np.ndarray
    response: np.ndarray

    @staticmethod
    def bare(left: np.ndarray, right: np.ndarray) -> Similar:
        """Pairs of which nothing is known."""
        unknown = np.full(len(left), np.nan)
        low, high = np.minimum(left, right), np.maximum(left, right)
        band = np.full(len(left), -1, np.int16)
        return Similar(left=low, right=high, band=band, whole=unknown, prompt=unknown, response=unknown)

    @staticmethod
    def of_codes(codes: np.ndarray, band: np.ndarray, *, total: int) -> Similar:
        """Pairs written as left * total + right."""
        left, right = np.divmod(codes, max(total, 1))
        made = Similar.bare(left, right)
        return made.replaced(band=band)

    @staticmethod
    def joined(parts: Sequence[Similar]) -> Similar:
        """One after the other."""
        start = Similar.bare(np.empty(0, np.int64), np.empty(0, np.int64))
        return Similar(
            **{f.name: np.concatenate([getattr(p, f.name) for p in (start, *parts)]) for f in fields(Similar)}
        )

    def replaced(self, **columns: np.ndarray) -> Similar:
        """The same pairs with other columns."""
        return Similar(**{f.name: columns.get(f.name, getattr(self, f.name)) for f in fields(self)})

    def of(self, chosen: Any) -> Similar:
        """The chosen pairs: a mask, a slice or numbers."""
        return Similar(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def named(self, positions: np.ndarray) -> Similar:
        """The same pairs under other numbers; left stays below right."""
        left, right = positions[self.left], positions[self.right]
        return self.replaced(left=np.minimum(left, right), right=np.maximum(left, right))

    def informed(self, known: Similar, *, total: int) -> Similar:
        """The same pairs with the likeness of responses where it is known of them. `known` is sorted by left and right."""
        codes, wanted = (p.left * total + p.right for p in (known, self))
        place = np.searchsorted(codes, wanted)
        same = np.zeros(len(wanted), bool)
        inside = place < len(codes)
        same[inside] = codes[place[inside]] == wanted[inside]
        response = self.response.copy()
        response[same] = known.response[place[same]]
        return self.replaced(response=response)

    def cut(self, size: int) -> Iterator[Similar]:
        """Slices of so many pairs."""
        for start in range(0, len(self.left), size):
            yield self.of(slice(start, start + size))


@dataclass(frozen=True, kw_only=True, slots=True)
class BandTask:
    """One band of whole examples or of prompts."""

    kind: str
    band: int
    at_least: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTask:
    """Some pairs to compare: whole examples by policy, prompts, or answers."""

    kind: str
    policy: str
    threshold: float
    pairs: Similar


@dataclass(frozen=True, slots=True)
class _Opened:
    table: Examined
    rows: Mapping[str, np.ndarray]
    """Kind -> fit row of each position."""


_opened: _Opened | None = None
"""Of this process."""


def begin(table: Examined | tuple[Path, ...], rows: Mapping[str, np.ndarray]) -> None:
    """Opens the table in the process that will work on it."""
    global _opened
    _opened = _Opened(table if isinstance(table, Examined) else Examined(table), rows)


def of_band(task: BandTask) -> np.ndarray:
    """Pairs of positions as codes, see `bands.band_pairs`."""
    table, rows = _here().table, _here().rows[task.kind]
    keys = table.band(f"{task.kind}_bands", task.band)[rows]
    return band_pairs(
        keys, lambda used: table.take(f"{task.kind}_signatures", rows[used]), at_least=task.at_least
    )  # fmt: skip


def compared(task: PairTask) -> Similar:
    """The pairs with their similarities. Prompts first: what they decide needs no further text."""
    pairs, texts = task.pairs, _Texts(_here(), task.pairs)
    if task.kind == "answer":
        return pairs.replaced(response=texts.jaccard("response", slice(None)))
    prompt = texts.jaccard("prompt", slice(None))
    if task.kind == "prompt":
        return pairs.replaced(prompt=prompt)
    asked = prompt >= task.threshold
    response, whole = np.full(len(prompt), np.nan), np.full(len(prompt), np.nan)
    answered, compared_whole = asked, ~asked
    if task.policy == "whole_example":
        compared_whole = np.ones(len(prompt), bool)
    response[answered] = texts.jaccard("response", answered)
    whole[compared_whole] = texts.jaccard("whole", compared_whole)
    return pairs.replaced(prompt=prompt, response=response, whole=whole)


class _Texts:
    """The texts of some pairs, read once."""

    def __init__(self, opened: _Opened, pairs: Similar) -> None:
        self.pairs = pairs
        self.used = np.unique(np.concatenate([pairs.left, pairs.right]))
        rows = opened.rows["whole"][self.used]
        self.prompt = opened.table.take_texts("prompt", rows)
        self.response = opened.table.take_texts("response", rows)

    def jaccard(self, part: str, chosen: Any) -> np.ndarray:
        """Exact similarity of the chosen pairs."""
        left = np.searchsorted(self.used, self.pairs.left[chosen])
        right = np.searchsorted(self.used, self.pairs.right[chosen])
        needed = np.unique(np.concatenate([left, right]))
        texts = [self._text(part, place) for place in needed.tolist()]
        return jaccard_of(texts, np.searchsorted(needed, left), np.searchsorted(needed, right))

    def _text(self, part: str, place: int) -> str:
        prompt, response = self.prompt[place], self.response[place]
        if part == "whole":
            return f"{prompt}\n{response}" if prompt else response
        return prompt if part == "prompt" else response


def _here() -> _Opened:
    if _opened is None:
        raise RuntimeError("begin() comes first")
    return _opened
