"""Words of many texts as 64-bit hashes, and the hash of any n words in a row by one subtraction: two prefix sums, no loop over words.

A word is a run of letters, digits and marks in NFC and lower case; a Chinese or Japanese character is a word of its own. A word's
hash is the polynomial over its characters, a sequence's hash the polynomial over its words, both modulo 2^64 with odd bases, so
that dividing by the power of the place makes it independent of where it stands. About 5 us a row of 480 ASCII characters.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PIECE_CHARACTERS = 1 << 18
"""Worked on at once: 2 MiB of character hashes, which a core's cache holds. A longer text is a piece of its own."""
CHARACTER_BASE, WORD_BASE = 0x9E6C63D0876A9A47, 0xD6E8FEB86659FD93
LONGEST_WORD = 1 << 16
"""Characters; those behind do not count."""
CACHED_POWERS = 1 << 20
CODE_POINTS = 0x40000
"""No letters above."""
ALONE = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Scripts without spaces between words: Han, Hiragana, Katakana."""
NOTHING, WORD, ALONE_WORD = 0, 1, 2
NEW_LINE = 10
Array = np.ndarray


def unicode_version() -> str:
    """Of the tables that say what a letter is: part of the identity of what is made from words."""
    return unicodedata.unidata_version


def normal(text: str) -> str:
    """NFC, lower case."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


@dataclass(frozen=True)
class Words:
    """The words of some texts, one behind the other."""

    positions: Array
    """int64 [R]: which of the texts asked for each one is."""
    texts: Sequence[str]
    """[R], as the offsets count them: normal where not ASCII."""
    offsets: Array
    """int64 [R]: where each text starts in the piece."""
    first: Array
    """int64 [R + 1]: its first word."""
    starts: Array
    """int64 [W]: first character of each word in the piece."""
    ends: Array
    """int64 [W]: behind its last character."""
    sums: Array
    """uint64 [W + 1]: prefix sums of hash times power."""
    characters: Array

    @property
    def num_words(self) -> int:
        """Of all texts together."""
        return len(self.starts)

    def every_gram(self, n: int) -> Array:
        """uint64 [W + 1 - n]: hash of the n words from each word on, also across texts."""
        if self.num_words < n:
            return np.zeros(0, np.uint64)
        found = self.sums[n:] - self.sums[:-n]
        found *= _powers(WORD_BASE, len(self.sums), inverse=True)[: len(found)]
        return found

    def grams(self, at: Array, n: Array | int) -> Array:
        """uint64: hash of the n words from each place on."""
        return (self.sums[at + n] - self.sums[at]) * _powers(WORD_BASE, len(self.sums), inverse=True)[at]

    def text_of(self, at: Array) -> Array:
        """int64: index of the text that each word is in."""
        return np.searchsorted(self.first, at, side="right") - 1

    def lines(self, low: int, high: int) -> tuple[Array, Array]:
        """First word and number of words of the lines, and of the whole texts, that have low <= words < high; int64."""
        bounds = np.searchsorted(self.starts, np.flatnonzero(self.characters == NEW_LINE))
        counts = np.diff(bounds)
        of_lines = np.flatnonzero((counts >= low) & (counts < high))
        whole = np.diff(self.first)
        of_texts = np.flatnonzero((whole >= low) & (whole < high))
        at = np.concatenate([bounds[of_lines], self.first[of_texts]])
        sizes = np.concatenate([counts[of_lines], whole[of_texts]])
        once = np.unique(at * high + sizes)
        return once // high, once % high

    def span(self, at: int, end: int) -> tuple[int, int, int]:
        """Index of the text, first and last character + 1 in it, of the words at..end."""
        text = int(np.searchsorted(self.first, at, side="right")) - 1
        return text, int(self.starts[at] - self.offsets[text]), int(self.ends[end - 1] - self.offsets[text])


def words_of(texts: Sequence[str]) -> Iterator[Words]:
    """The words of the texts in pieces of whole texts. ASCII texts come first: they are read as bytes."""
    plain = [n for n, text in enumerate(texts) if text.isascii()]
    for positions in _cut(plain, texts):
        yield _words(positions, [texts[n] for n in positions], ascii_only=True)
    if len(plain) < len(texts):
        for positions in _cut([n for n, text in enumerate(texts) if not text.isascii()], texts):
            yield _words(positions, [normal(texts[n]) for n in positions], ascii_only=False)


def _cut(positions: Sequence[int], texts: Sequence[str]) -> Iterator[Sequence[int]]:
    waiting: list[int] = []
    size = 0
    for n in positions:
        if waiting and size + len(texts[n]) > PIECE_CHARACTERS:
            yield waiting
            waiting, size = [], 0
        waiting.append(n)
        size += len(texts[n]) + 1
    if waiting:
        yield waiting


def _words(positions: Sequence[int], texts: Sequence[str], *, ascii_only: bool) -> Words:
    joined = "\n" + "\n".join(texts) + "\n"
    if ascii_only:
        characters = np.frombuffer(joined.encode("ascii"), np.uint8)
        kinds, hashes = _ascii_tables()
        starts, ends = _runs(kinds[characters])
    else:
        characters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        all_kinds, hashes = _tables()
        if characters.max() >= CODE_POINTS:
            characters = np.where(characters < CODE_POINTS, characters, 0)
        starts, ends = _runs_with_lone(all_kinds[characters])
    found = _word_hashes(characters, starts, np.minimum(ends, starts + LONGEST_WORD), hashes=hashes)
    _mix(found)
    found *= _powers(WORD_BASE, len(found) + 1)[: len(found)]
    sums = np.zeros(len(found) + 1, np.uint64)
    np.cumsum(found, out=sums[1:])
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    offsets = np.cumsum(lengths) - lengths + 1
    first = np.append(np.searchsorted(starts, offsets), len(starts))
    return Words(np.asarray(positions, np.int64), texts, offsets, first, starts, ends, sums, characters)


def _word_hashes(characters: Array, starts: Array, ends: Array, *, hashes: Array) -> Array:
    """uint64 [W]: the polynomial over each word's characters; the working arrays span no more than a piece."""
    found = np.empty(len(starts), np.uint64)
    done = 0
    while done < len(starts):
        before = starts[done] - 1
        upto = int(np.searchsorted(ends, before + PIECE_CHARACTERS + LONGEST_WORD, side="right"))
        values = hashes[characters[before : ends[upto - 1]]]
        values *= _powers(CHARACTER_BASE, len(values))[: len(values)]
        np.cumsum(values, out=values)
        here = starts[done:upto] - before
        found[done:upto] = values[ends[done:upto] - before - 1]
        found[done:upto] -= values[here - 1]
        found[done:upto] *= _powers(CHARACTER_BASE, len(values), inverse=True)[here]
        done = upto
    return found


def _runs(kinds: Array) -> tuple[Array, Array]:
    """Starts and ends of the runs of 1; the first and the last character are 0."""
    changes = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    return changes[0::2], changes[1::2]


def _runs_with_lone(kinds: Array) -> tuple[Array, Array]:
    alone, differs = kinds == ALONE_WORD, kinds[1:] != kinds[:-1]
    borders = differs | alone[1:] | alone[:-1]
    starts = np.flatnonzero(borders & (kinds[1:] != NOTHING)) + 1
    ends = np.flatnonzero(borders & (kinds[:-1] != NOTHING)) + 1
    return starts, ends


def _mix(values: Array) -> None:
    """The finaliser of splitmix64, in place: words that differ little get hashes that differ much."""
    spare = np.empty_like(values)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        np.right_shift(values, np.uint64(shift), out=spare)
        values ^= spare
        if factor is not None:
            values *= np.uint64(factor)


def _powers(base: int, num: int, *, inverse: bool = False) -> Array:
    """uint64 of at least `num` powers of an odd base modulo 2^64, from power 0."""
    size = max(1 << (num - 1).bit_length(), 2 * PIECE_CHARACTERS)
    made = _power_table if size <= CACHED_POWERS else _power_table.__wrapped__
    return made(pow(base, -1, 1 << 64) if inverse else base, size)


@functools.cache
def _power_table(base: int, num: int) -> Array:
    values = np.full(num, base, np.uint64)
    values[0] = 1
    return np.multiply.accumulate(values)


@functools.cache
def _tables() -> tuple[Array, Array]:
    """Kind and hash of every code point; the hash of what is in no word is 0."""
    kinds = np.fromiter((_kind(chr(n)) for n in range(CODE_POINTS)), np.uint8, CODE_POINTS)
    for low, high in ALONE:
        kinds[low : high + 1] *= ALONE_WORD
    hashes = np.arange(1, CODE_POINTS + 1, dtype=np.uint64) * np.uint64(CHARACTER_BASE)
    _mix(hashes)
    return kinds, np.where(kinds != NOTHING, hashes, np.uint64(0))


@functools.cache
def _ascii_tables() -> tuple[Array, Array]:
    """The same for bytes, capital letters as small ones."""
    small = np.array([ord(chr(n).lower()) for n in range(128)])
    hashes = small.astype(np.uint64) + np.uint64(1)
    hashes *= np.uint64(CHARACTER_BASE)
    _mix(hashes)
    kinds = np.array([_kind(chr(n)) for n in range(128)], np.uint8)
    return kinds, np.where(kinds != NOTHING, hashes, np.uint64(0))


def _kind(character: str) -> int:
    return WORD if character.isalnum() or unicodedata.category(character)[0] == "M" else NOTHING
