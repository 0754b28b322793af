"""Contamination: rows that hold items of a benchmark, or of the recipe's own holdout. Lexical only: a paraphrase is not found.

bench_cov is the share of one item's word sequences that stand in one row, train_frac the share of the row's 13-grams that stand
anywhere in the benchmark. A row is flagged by bench_cov >= threshold, by train_frac > 0.5, or by a line that is a short item.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.benchmark_index import LONGEST, PREFIX_BITS, SHORTEST, SHORTEST_LINE, Index, open_index
from ft_pipeline.curate.coverage import Found, Rule, Sequences, best_of, lines_of, matches_of
from ft_pipeline.curate.flags import Action, Batch, Flag
from ft_pipeline.curate.words import Words, words_of
from ft_pipeline.recipe import Contamination
from ft_pipeline.store.artifacts import Artifact

EXCERPT_CHARACTERS = 160
TABLE_BITS = (22, PREFIX_BITS)
PREFIX, WHOLE, LINE = 1, 2, 4
SPREAD = 0x9E3779B97F4A7C15
Array = np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An item in a row."""

    row: int
    benchmark: str
    item_id: str
    """Empty when only boilerplate that many items share stands in the row."""
    item_sha256: str
    bench_cov: float
    train_frac: float
    rule: Rule
    span: tuple[int, int]
    """First and last character + 1 of what matched; of the text in NFC and lower case where it is not ASCII."""
    text: str
    """What stands there, its first characters."""

    def evidence(self) -> dict[str, Any]:
        """As a flag and the ledger keep it."""
        return {
            "rule": self.rule, "benchmark": self.benchmark, "item": self.item_id, "item_sha256": self.item_sha256,
            "bench_cov": self.bench_cov, "train_frac": self.train_frac, "span": list(self.span), "text": self.text,
        }  # fmt: skip


class Scanner:
    """Looks for the items of several indexes in texts. Open it once in each process."""

    def __init__(self, indexes: Sequence[Index], *, threshold: float, action: Action = "drop") -> None:
        """Builds the table that says for most word sequences at once that no index has them."""
        self.indexes, self.threshold, self.action = tuple(indexes), threshold, action
        keys = sum(len(i.arrays.grams) + len(i.arrays.prefixes) for i in indexes)
        bits = min(max((8 * keys).bit_length(), TABLE_BITS[0]), TABLE_BITS[1])
        self._table = np.zeros(1 << bits, np.uint8)
        self._shift = np.uint64(64 - bits)
        self._lengths = range(SHORTEST, LONGEST + 1)
        for index in indexes:
            arrays = index.arrays
            self._table[arrays.prefixes >> (PREFIX_BITS - bits)] |= PREFIX
            for values, mark in ((arrays.grams, WHOLE), (arrays.lines, LINE)):
                self._table[self._spread(values)] |= mark

    def flags(self, batch: Batch) -> list[Flag]:
        """A flag for every item in every row of the batch."""
        return [
            Flag(row=h.row, filter="contamination", action=self.action, reason=Reason.CONTAMINATED, evidence=h.evidence())
            for h in self.scan(batch.texts)
        ]  # fmt: skip

    def scan(self, texts: Sequence[str]) -> list[Hit]:
        """Every item in every text that the rules flag, by row, the best covered item first.

        A hit depends on its own text only. About 6 us a text of 480 characters, whatever the number of indexes.
        """
        hits = [hit for words in words_of(texts) for hit in self._piece(words)]
        return sorted(hits, key=lambda h: (h.row, -h.bench_cov, h.benchmark, h.item_id))

    def _piece(self, words: Words) -> Iterable[Hit]:
        found = self._sequences(words)
        lines = self._lines(words)
        for index in self.indexes:
            matches = matches_of(index, words, found)
            whole = lines_of(index, words, lines)
            best = best_of(index, matches, whole, threshold=self.threshold)
            yield from (_hit(index, words, one) for one in best)

    def _sequences(self, words: Words) -> Sequences:
        """Place, number of words and hash of the word sequences that an index may have."""
        first = words.every_gram(SHORTEST)
        first >>= self._shift
        at = np.flatnonzero(self._table[first.view(np.int64)] & PREFIX)
        ends = words.first[words.text_of(at) + 1]
        places, sizes, hashes = [], [], []
        for n in self._lengths:
            here = at[at + n <= ends]
            whole = words.grams(here, n)
            marked = np.flatnonzero(self._table[self._spread(whole)] & WHOLE)
            places.append(here[marked])
            sizes.append(np.full(len(marked), n))
            hashes.append(whole[marked])
        return np.concatenate(places), np.concatenate(sizes), np.concatenate(hashes)

    def _lines(self, words: Words) -> Sequences:
        """First word, number of words and hash of the short lines that may be an item."""
        at, sizes = words.lines(SHORTEST_LINE, SHORTEST)
        hashes = words.grams(at, sizes)
        marked = np.flatnonzero(self._table[self._spread(hashes)] & LINE)
        return at[marked], sizes[marked], hashes[marked]

    def _spread(self, hashes: Array) -> Array:
        """Cells of whole sequences: other ones than those of first words."""
        cells = hashes * np.uint64(SPREAD)
        cells >>= self._shift
        return cells.view(np.int64)


def open_contamination(config: Contamination, indexes: Sequence[Artifact | Path]) -> Scanner:
    """The scanner of a recipe's benchmarks. `indexes`: their `benchmark_index` artifacts or folders."""
    return Scanner([open_index(i) for i in indexes], threshold=config.threshold, action=action_of(config.policy))


def action_of(policy: Literal["off", "remove", "flag", "fail"]) -> Action:
    """What happens to a flagged row. Under `fail` rows stay as they are, because the run stops."""
    return "drop" if policy == "remove" else "note"


def _hit(index: Index, words: Words, found: Found) -> Hit:
    text, start, end = words.span(found.at, found.end)
    label = index.labels[found.item] if found.item >= 0 else None
    return Hit(
        row=int(words.positions[text]), benchmark=index.name, item_id=label.item_id if label else "",
        item_sha256=label.item_sha256 if label else "", bench_cov=round(found.coverage, 4), train_frac=round(found.fraction, 4),
        rule=found.rule, span=(start, end), text=words.texts[text][start:end][:EXCERPT_CHARACTERS],
    )  # fmt: skip
