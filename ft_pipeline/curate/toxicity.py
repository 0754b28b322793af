"""Words that a dataset must not teach, from a list, at word boundaries; and what a classifier says of a text, where there is one.

A list finds words, not meaning: it says "toxic" of a medical text and nothing of a polite threat. So a share of rows stops a run,
and a single row is only noted by default. A hit inside a word ("Scunthorpe") never counts: as substrings, the 403 words of LDNOOBW
are in 19% of 22,683 real rows, as words in 1.4%. 10 us a row of 480 characters.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.flags import Action, Batch, Flag
from ft_pipeline.curate.validate import strings
from ft_pipeline.errors import DataError, NotFoundError
from ft_pipeline.recipe import Toxicity

ACTIONS: Mapping[str, Action] = {"flag": "note", "reject": "drop"}
WORDLY = re.compile(r"\w")
PARTS = re.compile(r"\w+")
EDGES = (r"(?:^|[^\p{L}\p{N}_])", r"(?:$|[^\p{L}\p{N}_])")
r"""For polars. Not \b: its regex engine leaves the fast automaton for that as soon as a text is not ASCII."""
HINT_WORDS = 400
"""Words in one regular expression: more than a few thousand are over the size that the engine takes."""
MAX_FLAGS = 8
"""Of one row."""


class Classifier(Protocol):
    """Says how toxic texts are."""

    min_score: float
    """From this score on a text is toxic."""

    def scores(self, texts: Sequence[str]) -> Sequence[float]:
        """One in [0, 1] for each text."""
        ...


@dataclass(frozen=True)
class Words:
    """A word list, ready to be searched for."""

    words: tuple[str, ...]
    """Lower case, single spaces, each once, longest first: a phrase wins over its first word."""

    @cached_property
    def hints(self) -> list[str]:
        """For polars, over lower-case text: one of them is true of every text that has a word of the list."""
        return [_hint(self.words[i : i + HINT_WORDS]) for i in range(0, len(self.words), HINT_WORDS)]

    @cached_property
    def by_part(self) -> dict[str, list[int]]:
        """Longest run of letters of a word -> places of the words that have it; a text without that run has none of them."""
        places: dict[str, list[int]] = {}
        for place, word in enumerate(self.words):
            longest: str = max(PARTS.findall(word) or [""], key=len)
            places.setdefault(longest, []).append(place)
        return places

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where words of the list are, in order, none over another."""
        parts = {"", *PARTS.findall(text.lower())} & self.by_part.keys()
        found: list[tuple[int, int]] = []
        for place in sorted(place for part in parts for place in self.by_part[part]):
            spans = [match.span() for match in _pattern(self.words[place]).finditer(text)]
            found += [s for s in spans if all(s[1] <= other[0] or s[0] >= other[1] for other in found)]
        return sorted(found)

    def masked(self, text: str) -> str:
        """The text with stars for all but the first letter of each word of the list."""
        for start, end in reversed(self.spans(text)):
            text = text[:start] + masked(text[start:end]) + text[end:]
        return text


def open_toxicity(words_path: Path) -> Words:
    """The list in a text file: a word or phrase a line, blank lines and lines that begin with # aside. Raises NotFoundError, DataError."""
    try:
        lines = words_path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise NotFoundError(f"no word list at {words_path}", cure="check curate.toxicity.words") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{words_path} is not UTF-8: {error.reason} at byte {error.start}", cure="save it as UTF-8"
        ) from None
    words = {" ".join(line.lower().split()) for line in lines if line.strip() and not line.lstrip().startswith("#")}
    if not words:
        raise DataError(f"{words_path} holds no word", why="Nothing could be found.", cure="one word or phrase a line")
    return Words(tuple(sorted(words, key=lambda w: (-len(w), w))))


def toxicity(
    batch: Batch, config: Toxicity, opened: Words | None, *, classifier: Classifier | None = None
) -> list[Flag]:
    """Flags in order of rows: the first 8 words of a row, shown by their first letter, and a classifier's score over the limit."""
    action = ACTIONS[config.policy]
    found = list(_listed(batch, opened)) if opened else []
    if classifier:
        found += _scored(batch, classifier)
    return [
        Flag(row=row, filter="toxicity", action=action, reason=Reason.TOXIC, evidence=evidence)
        for row, evidence in sorted(found, key=lambda item: item[0])
    ]


def _listed(batch: Batch, opened: Words) -> Iterable[tuple[int, dict[str, object]]]:
    import polars as pl

    lower = pl.DataFrame({"text": batch.wholes}, schema={"text": pl.String}).select(pl.col("text").str.to_lowercase())
    hits = lower.select(pl.any_horizontal([pl.col("text").str.contains(hint) for hint in opened.hints]))
    for row in hits.to_series().arg_true().to_list():
        found = [(path, text, span) for path, text in strings(batch.contents[row]) for span in opened.spans(text)]
        for path, text, (start, end) in found[:MAX_FLAGS]:
            # a key of a tool's arguments is a part of the path
            place = {"path": opened.masked(path), "span": [start, end]}
            yield row, {"rule": "word", **place, "value": masked(text[start:end]), "found": len(found)}


def _scored(batch: Batch, classifier: Classifier) -> list[tuple[int, dict[str, object]]]:
    scores = classifier.scores(batch.responses)
    if len(scores) != len(batch.responses):
        raise DataError(f"the classifier gave {len(scores)} scores for {len(batch.responses)} texts")
    return [
        (row, {"rule": "classifier", "value": round(float(score), 3), "limit": classifier.min_score})
        for row, score in enumerate(scores)
        if score >= classifier.min_score
    ]


def masked(word: str) -> str:
    """First letter and stars: `s***`, two words `d*** p***`."""
    return " ".join(part[:1] + "*" * (len(part) - 1) for part in word.split())


def _hint(words: Sequence[str]) -> str:
    """The words by which of their ends are letters, each group between the boundaries that it needs."""
    groups: dict[tuple[bool, bool], list[str]] = {}
    for word in words:
        groups.setdefault((bool(WORDLY.match(word[0])), bool(WORDLY.match(word[-1]))), []).append(_quoted(word))
    return "|".join(
        f"{EDGES[0] if left else ''}(?:{'|'.join(group)}){EDGES[1] if right else ''}"
        for (left, right), group in groups.items()
    )


@functools.lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    left = r"(?<!\w)" if WORDLY.match(word[0]) else ""
    right = r"(?!\w)" if WORDLY.match(word[-1]) else ""
    return re.compile(left + _quoted(word) + right, re.IGNORECASE)


def _quoted(word: str) -> str:
    r"""For both regex engines: signs behind a backslash, any white space between the parts of a phrase."""
    return "".join(r"\s+" if c == " " else c if c.isalnum() or c == "_" or not c.isascii() else f"\\{c}" for c in word)
