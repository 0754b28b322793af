"""Spans (start, end) of trained text: from characters to tokens, by binary search over the offsets of the tokenizer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

Span = tuple[int, int]


def token_spans(found: Any, spans: Sequence[Span]) -> list[Span]:
    """Token spans (start, end) that hold at least one character of each character span: a binary search per border.

    A letter of several tokens is trained whole; `char_to_token`, which transformers uses, leaves its last bytes out.
    """
    places, made = range(len(found.ids)), []
    for start, stop in spans:
        first = bisect_right(places, start, key=lambda place: found.token_to_chars(place)[1])
        behind = first
        while behind < len(places) and found.token_to_chars(behind)[0] < stop:
            step = bisect_right(places, stop - 1, behind, key=lambda place: found.token_to_chars(place)[0])
            behind = max(step, behind + 1)
        if behind > first:
            made.append((first, behind))
    return made


def trained_spans(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Without the first token of the row, which nothing predicts; spans that touch as one."""
    made: list[Span] = []
    for start, end in spans:
        start = max(start, 1)
        if made and start <= made[-1][1]:
            made[-1] = (made[-1][0], max(end, made[-1][1]))
        elif end > start:
            made.append((start, end))
    return tuple(made)
