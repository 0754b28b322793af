"""Metrics of words: the same text, common words, common sequences."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter


def exact_match(reference: str, answer: str, *, ignore_case: bool = False) -> float:
    """1.0 when both are the same text, apart from white space and Unicode composition; case counts unless it is ignored."""
    return float(plain(reference, ignore_case) == plain(answer, ignore_case))


def token_f1(reference: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bag of lower-case words, as in SQuAD (arXiv 1606.05250)."""
    return _overlap(_words(reference), _words(answer))


def rouge_1(reference: str, answer: str) -> float:
    """F-measure of common words (Lin 2004, aclanthology W04-1013): token_f1 by its other name."""
    return token_f1(reference, answer)


def rouge_2(reference: str, answer: str) -> float:
    """F-measure of common pairs of neighbouring words; texts of one word have no pair and are compared as words."""
    want, got = _words(reference), _words(answer)
    if len(want) < 2 or len(got) < 2:
        return float(want == got)
    return _overlap(_pairs(want), _pairs(got))


def rouge_l(reference: str, answer: str) -> float:
    """F-measure of the longest common subsequence of lower-case words (Lin 2004), in [0, 1]."""
    want, got = _words(reference), _words(answer)
    row = [0] * (len(got) + 1)
    for word in want:
        diagonal = 0
        for j, other in enumerate(got, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return _f1(row[-1], len(want), len(got))


def plain(text: str, ignore_case: bool = False) -> str:
    """The text in one Unicode composition, with single spaces."""
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return words.casefold() if ignore_case else words


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return [(words[i], words[i + 1]) for i in range(len(words) - 1)]


def _overlap(want: list, got: list) -> float:
    return _f1(sum((Counter(want) & Counter(got)).values()), len(want), len(got))


def _f1(common: int, wanted: int, got: int) -> float:
    return 2 * common / (wanted + got) if wanted + got else 1.0
