"""How much of each benchmark item stands in each text, and which of them the rules flag. Arrays in, few numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ft_pipeline.curate.benchmark_index import LONGEST, Index
from ft_pipeline.curate.words import Words

Rule = Literal["bench_cov", "train_frac", "line"]
MAX_TRAIN_FRAC = 0.5
Array = np.ndarray
Sequences = tuple[Array, Array, Array]
"""First word, number of words and hash of word sequences, side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An item in a text, in numbers; words are counted in the piece."""

    text: int
    item: int
    """-1: no item."""
    coverage: float
    fraction: float
    rule: Rule
    at: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """Word sequences of one index in the texts of a piece: arrays side by side."""

    text: Array
    at: Array
    end: Array
    gram: Array
    fractions: Array
    """float [texts]: train_frac of each text."""


def matches_of(index: Index, words: Words, found: Sequences) -> Matches:
    """Those of the sequences that the index has."""
    at, sizes, hashes = found
    gram, known = _position(index.arrays.grams, hashes)
    at, end, gram = at[known], (at + sizes)[known], gram[known]
    text = words.text_of(at)
    long = np.bincount(text[end - at == LONGEST], minlength=len(words.texts))
    sequences = np.maximum(np.diff(words.first) - LONGEST + 1, 1)
    return Matches(text=text, at=at, end=end, gram=gram, fractions=long / sequences)


def lines_of(index: Index, words: Words, lines: Sequences) -> list[Found]:
    """Those of the lines that are an item."""
    at, sizes, hashes = lines
    line, known = _position(index.arrays.lines, hashes)
    return [
        Found(text=int(t), item=int(index.arrays.line_items[n]), coverage=1.0, fraction=0.0, rule="line", at=int(a), end=int(a + s))
        for t, n, a, s in zip(words.text_of(at[known]), line[known], at[known], sizes[known], strict=True)
    ]  # fmt: skip


def _position(keys: Array, values: Array) -> tuple[Array, Array]:
    """Where each value is or would be among sorted keys, and whether it is there."""
    if not len(keys):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    position = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return position, keys[position] == values


def best_of(index: Index, matches: Matches, whole: Sequence[Found], *, threshold: float) -> list[Found]:
    """What the rules flag: each item of each text once, as its best form."""
    found = list(whole)
    if len(matches.at):
        scored = _scored(index, matches)
        high = np.flatnonzero(matches.fractions > MAX_TRAIN_FRAC)
        passed = scored["coverage"] >= threshold
        found += [_of(scored, n, matches, rule="bench_cov") for n in np.flatnonzero(passed)]
        for text in np.setdiff1d(high, scored["text"][passed]):
            found.append(_fallback(scored, int(text), matches))
    best: dict[tuple[int, int], Found] = {}
    for one in sorted(found, key=lambda f: (-f.coverage, f.at, f.end, f.rule)):
        best.setdefault((one.text, one.item), one)
    return list(best.values())


def _scored(index: Index, matches: Matches) -> dict[str, Array]:
    """Coverage of every form of every item in every text that holds a part of it, with the first and the last word."""
    arrays = index.arrays
    starts = arrays.owner_starts[matches.gram].astype(np.int64)
    counts = arrays.owner_starts[matches.gram + 1] - starts
    match = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(match)) - np.repeat(np.cumsum(counts) - counts, counts)
    form = arrays.owners[starts[match] + within].astype(np.int64)
    pair = matches.text[match] * len(arrays.text_items) + form
    order = np.lexsort((matches.gram[match], pair))
    pair, match = pair[order], match[order]
    first = np.flatnonzero(np.append(True, pair[1:] != pair[:-1])) if len(pair) else np.zeros(0, np.int64)
    new = np.append(True, (pair[1:] != pair[:-1]) | (matches.gram[match][1:] != matches.gram[match][:-1]))[: len(pair)]
    distinct = np.add.reduceat(new.astype(np.int64), first) if len(first) else first
    form = pair[first] % len(arrays.text_items)
    return {
        "text": pair[first] // len(arrays.text_items),
        "item": arrays.text_items[form],
        "coverage": distinct / arrays.text_grams[form],
        "at": np.minimum.reduceat(matches.at[match], first) if len(first) else first,
        "end": np.maximum.reduceat(matches.end[match], first) if len(first) else first,
    }


def _of(scored: dict[str, Array], n: int, matches: Matches, *, rule: Rule) -> Found:
    text = int(scored["text"][n])
    return Found(
        text=text, item=int(scored["item"][n]), coverage=float(scored["coverage"][n]), fraction=float(matches.fractions[text]),
        rule=rule, at=int(scored["at"][n]), end=int(scored["end"][n]),
    )  # fmt: skip


def _fallback(scored: dict[str, Array], text: int, matches: Matches) -> Found:
    """A text that is mostly benchmark though it holds no item by half: its best item, or none."""
    here = np.flatnonzero(scored["text"] == text)
    if len(here):
        return _of(scored, int(here[np.argmax(scored["coverage"][here])]), matches, rule="train_frac")
    mine = matches.text == text
    return Found(
        text=text, item=-1, coverage=0.0, fraction=float(matches.fractions[text]), rule="train_frac",
        at=int(matches.at[mine].min()), end=int(matches.end[mine].max()),
    )  # fmt: skip
