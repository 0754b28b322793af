"""Statistics of a row's response that speak of noise, after Gopher's (arXiv 2112.11446, A1.1), and a score to choose between duplicates.

Gopher's limits are for web pages. Instruction data is other: one word is an answer, so are a number, a table, a list, code. So
nothing is said of length, of stop words, of line ends or of digits, and a limit is where no reader would call the text one: of
22,683 real rows it flags 3, a calculation gone wrong, a repeated import and a giggle of 2,000 characters. 10 us a row of 320.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.flags import Action, Batch, Flag
from ft_pipeline.recipe import Quality

ACTIONS: Mapping[str, Action] = {"flag": "note", "reject": "drop"}
POINTS = np.float32(0.25)
"""Off the score for each finding."""

MIN_CHARACTERS = 20
MIN_ALPHANUMERIC = 0.25
"""Letters and digits among the characters that are no space. English prose has .97, Python .8, an empty sudoku .3."""
MIN_WORDS = 8
MAX_WORD = 30.0
"""Mean characters of a word, web addresses aside. English 4.5 to 5.5, German 6.5, Python 7; a list of addresses has 40."""
ADDRESS = re.compile(r"https?://\S+")
MIN_SPELLED_WORDS = 30
MIN_WORD = 1.3
"""T e x t  l i k e  t h i s has 1; only of texts of letters, formulas have short words."""
MIN_LETTERS = 0.8
MAX_FOREIGN = 0.3
"""Share of non-ASCII characters above which words are not measured: Chinese, Japanese and Thai do without spaces."""
BLOB_CHARACTERS = 256
BLOB = re.compile(rf"[A-Za-z0-9+/=_-]{{{BLOB_CHARACTERS},}}")
"""Base64 or hex without a break. SHA-512 in hex has 128, a P-521 signature 176."""
MIN_REPEATABLE = 200
MAX_REPEATED = 0.65
"""Share of a text that was in it before. Two equal copies have .5: the two answers of a preference may be alike."""
CANDIDATE_REPEATED = 0.5
SHINGLE = 8
SAMPLE = 8
"""One of so many shingles is looked at, chosen by hash, so that a repeated one is chosen each time."""
BOILERPLATE = (
    "lorem ipsum", "as an ai language model", "as a large language model", "as an ai assistant", "[insert ", "click here to", "all rights reserved", "enable javascript",
)  # fmt: skip
"""Only noted, whatever the policy: a refusal may be what is to be taught."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A rule that a row breaks."""

    row: int
    rule: str
    value: float | str
    limit: float | str


def quality(batch: Batch, config: Quality) -> tuple[list[Flag], np.ndarray]:
    """Flags in order of rows, evidence {rule, value, limit}, and float32 [rows] scores: 1 without a finding, .25 less for each."""
    scores = np.ones(len(batch.responses), np.float32)
    if config.policy == "off" or not len(scores):
        return [], scores
    measured = Measured(batch.responses)
    found = [*_noise(measured), *_repeated(measured), *_blobs(batch.texts), *_boilerplate(batch.responses)]
    for finding in found:
        scores[finding.row] = max(scores[finding.row] - POINTS, np.float32(0))
    return [_flag(finding, config.policy) for finding in sorted(found, key=lambda f: f.row)], scores


def _flag(finding: Finding, policy: str) -> Flag:
    action: Action = "note" if finding.rule == "boilerplate" else ACTIONS[policy]
    evidence = {"rule": finding.rule, "value": finding.value, "limit": finding.limit}
    return Flag(row=finding.row, filter="quality", action=action, reason=Reason.LOW_QUALITY, evidence=evidence)


SPACE, SIGN, DIGIT, LETTER, FOREIGN, TAIL = range(6)
"""Classes of UTF-8 bytes; FOREIGN starts a character beyond ASCII, TAIL goes on with it."""


def _classes() -> np.ndarray:
    table = np.full(256, SIGN, np.uint8)
    table[[9, 10, 11, 12, 13, 32]] = SPACE
    table[48:58] = DIGIT
    table[65:91] = table[97:123] = LETTER
    table[128:192], table[192:] = TAIL, FOREIGN
    return table


class Measured:
    """Texts as one array of UTF-8 bytes: counted at 2 to 3 ns a byte, a tenth of what counting by regular expressions costs."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Encodes once. Every text gets a space behind it, so that none is empty and no word goes on into the next."""
        self.texts = texts
        self.bytes = np.frombuffer(("".join([f"{text} " for text in texts])).encode(), np.uint8)
        sizes = [len(t) if t.isascii() else len(t.encode()) for t in texts]
        self.ends = np.cumsum(np.asarray(sizes, np.int64) + 1)
        self.starts = np.r_[0, self.ends[:-1]]
        self.classes = _classes()[self.bytes]

    def count(self, marked: np.ndarray) -> np.ndarray:
        """True values in each text, float64."""
        return np.add.reduceat(marked, self.starts, dtype=np.int64).astype(np.float64)

    @cached_property
    def word_ends(self) -> np.ndarray:
        """Bool, a byte each: a space behind a word."""
        ends = self.classes == SPACE
        ends[1:] &= self.classes[:-1] != SPACE
        ends[0] &= False
        return ends


def _noise(measured: Measured) -> list[Finding]:
    """Symbols, letters standing alone, words without end."""
    of = measured.count
    letters, foreign = of(measured.classes == LETTER), of(measured.classes == FOREIGN)
    wordly = letters + foreign + of(measured.classes == DIGIT)
    characters = wordly + of(measured.classes == SIGN)
    words = of(measured.word_ends)
    some = np.maximum(characters, 1)
    alphanumeric, mean_word = wordly / some, characters / np.maximum(words, 1)
    latin = foreign / some <= MAX_FOREIGN
    spelled = (mean_word < MIN_WORD) & (words >= MIN_SPELLED_WORDS) & (letters / some >= MIN_LETTERS)
    return [
        *_rows("alphanumeric_share", alphanumeric, (characters >= MIN_CHARACTERS) & (alphanumeric < MIN_ALPHANUMERIC), limit=MIN_ALPHANUMERIC),
        *_endless_words(measured.texts, (mean_word > MAX_WORD) & (words >= MIN_WORDS) & latin),
        *_rows("mean_word", mean_word, spelled & latin, limit=MIN_WORD),
    ]  # fmt: skip


def _endless_words(texts: Sequence[str], suspect: np.ndarray) -> list[Finding]:
    found = []
    for row in np.flatnonzero(suspect).tolist():
        words = ADDRESS.sub(" ", texts[row]).split()
        mean = sum(map(len, words)) / max(len(words), 1)
        if mean > MAX_WORD and len(words) >= MIN_WORDS:
            found.append(Finding(row=row, rule="mean_word", value=round(mean, 3), limit=MAX_WORD))
    return found


def _rows(rule: str, values: np.ndarray, broken: np.ndarray, *, limit: float) -> list[Finding]:
    return [
        Finding(row=row, rule=rule, value=round(float(values[row]), 3), limit=limit)
        for row in np.flatnonzero(broken).tolist()
    ]


def _repeated(measured: Measured) -> list[Finding]:
    """Candidates by a sample of hashed 8-byte shingles, then the exact share."""
    found = []
    for row in np.flatnonzero(_is_candidate(measured)).tolist():
        for rule, share in (("repeated_lines", repeated_lines), ("repeated_text", repeated_text)):
            if (value := share(measured.texts[row])) > MAX_REPEATED:
                found.append(Finding(row=row, rule=rule, value=round(value, 3), limit=MAX_REPEATED))
                break
    return found


def _is_candidate(measured: Measured) -> np.ndarray:
    """Bool [rows]: half of the sampled shingles seen before, or hardly any sampled, as in a text of few different ones."""
    sizes = measured.ends - measured.starts
    if len(measured.bytes) < SHINGLE:
        return np.zeros(len(sizes), bool)
    windows = np.ndarray(len(measured.bytes) - SHINGLE + 1, "<u8", buffer=measured.bytes, strides=(1,))
    hashes = windows * np.uint64(0x9E3779B97F4A7C15)
    places = np.flatnonzero(hashes < np.uint64(2**64 // SAMPLE))
    owners = np.repeat(
        np.arange(len(sizes), dtype=np.uint64), np.diff(np.searchsorted(places, np.r_[0, measured.ends]))
    )
    keys = np.sort((owners << np.uint64(40)) | (hashes[places] >> np.uint64(21)))
    first = np.r_[True, keys[1:] != keys[:-1]] if len(keys) else np.zeros(0, bool)
    row_of = (keys >> np.uint64(40)).astype(np.int64)
    sampled = np.bincount(row_of, minlength=len(sizes))
    distinct = np.bincount(row_of[first], minlength=len(sizes))
    few = sampled < sizes / (SAMPLE * 4)
    return (sizes >= MIN_REPEATABLE) & (few | (sampled - distinct > CANDIDATE_REPEATED * sampled))


def repeated_lines(text: str) -> float:
    """Share of the characters that stand in a line which stood there before; 0 under four lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 4:
        return 0.0
    once = sum(map(len, set(lines)))
    return 1 - once / sum(map(len, lines))


def repeated_text(text: str) -> float:
    """Share of the 16-character shingles that were in the text before, white space collapsed; 0 under 200 characters."""
    text = " ".join(text.split())
    total = len(text) - 15
    return 1 - len({text[i : i + 16] for i in range(total)}) / total if total > MIN_REPEATABLE - 16 else 0.0


def _blobs(texts: Sequence[str]) -> list[Finding]:
    """Long runs of base64 or hex in prompt or response."""
    import polars as pl

    hits = pl.Series("text", texts, pl.String).str.contains(rf"[A-Za-z0-9+/=_-]{{{BLOB_CHARACTERS}}}").to_numpy()
    found = []
    for row in np.flatnonzero(hits).tolist():
        longest = max((m[0] for m in BLOB.finditer(texts[row]) if _is_encoded(m[0])), key=len, default="")
        if longest:
            found.append(Finding(row=row, rule="encoded_blob", value=len(longest), limit=BLOB_CHARACTERS))
    return found


def _is_encoded(run: str) -> bool:
    """Digits among letters, evenly: no word joined by dashes, no ruler of dashes."""
    head = run[:BLOB_CHARACTERS]
    signs = sum(head.count(c) for c in "=_-/+")
    return (
        len(set(head)) >= 12 and any(map(str.isdigit, head)) and any(map(str.isalpha, head)) and signs < len(head) / 8
    )


def _boilerplate(texts: Sequence[str]) -> list[Finding]:
    import polars as pl

    hits = (
        pl.Series("text", texts, pl.String).str.contains_any(list(BOILERPLATE), ascii_case_insensitive=True).to_numpy()
    )
    found = []
    for row in np.flatnonzero(hits).tolist():
        low = texts[row].lower()
        phrase = next((p for p in BOILERPLATE if p in low), "")
        found.append(Finding(row=row, rule="boilerplate", value=phrase.strip(), limit="none"))
    return found
