"""Verifiable rewards with TRL's signature `f(completions, **columns) -> list[float]`: 1 passes, 0 fails. They read text only.

A completion is a text, or a list of messages as TRL hands it over. Each is strict: what a policy can reach without
solving the task (naming every number, quoting the question) must not pass; the probes beside this file hold such tries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
RewardFunction = Callable[..., list[float | None]]
NUMBER = re.compile(r"(?<![\w.])[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|\.\d)")
"""1234, 1,234.5, -3, $7: no part of a word, of a version or of a date with dots."""
MARKED = re.compile(r"####\s*(.*?)\s*$", re.MULTILINE)
"""GSM8K writes its answer behind four hashes on a line (arXiv 2110.14168)."""


def exact_answer(
    completions: Sequence[Completion], answer: Sequence[str], *, ignore_case: bool = False, **_columns: Any
) -> list[float | None]:
    """1 where the whole completion is the answer, white space at both ends aside."""
    pairs = zip(completions, answer, strict=True)
    return [float(_plain(text_of(c), ignore_case) == _plain(a, ignore_case)) for c, a in pairs]


def numeric_answer(
    completions: Sequence[Completion], answer: Sequence[str], *, tolerance: float = 0.0, **_columns: Any
) -> list[float | None]:
    """1 where the number behind `####`, or else the last one, is that of the answer. None for an answer without a number."""
    return [_same_number(text_of(c), a, Decimal(str(tolerance))) for c, a in zip(completions, answer, strict=True)]


def matches(
    completions: Sequence[Completion], answer: Sequence[str], *, pattern: str, group: int = 0, **_columns: Any
) -> list[float | None]:
    """1 where the pattern matches the whole completion (DOTALL); with `group`, where that group is also the answer."""
    compiled = re.compile(pattern, re.DOTALL)
    found = [(compiled.fullmatch(text_of(c).strip()), a) for c, a in zip(completions, answer, strict=True)]
    return [float(m is not None and (not group or (m[group] or "").strip() == a.strip())) for m, a in found]


def valid_json(
    completions: Sequence[Completion], *, json_schema: Mapping[str, Any], **_columns: Any
) -> list[float | None]:
    """1 where the completion is one JSON value that the schema (draft 2020-12) allows, in a ```json fence or bare."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json_schema)
    return [float(_fits(validator, text_of(completion))) for completion in completions]


def length_between(
    completions: Sequence[Completion], *, most: int, least: int = 1, **_columns: Any
) -> list[float | None]:
    """1 where the completion has from `least` to `most` characters, white space at both ends aside."""
    return [float(least <= len(text_of(completion).strip()) <= most) for completion in completions]


def think_format(completions: Sequence[Completion], **_columns: Any) -> list[float | None]:
    """1 where one thought in <think> tags, not empty, comes first and an answer, not empty and without tags, behind it."""
    form = re.compile(r"<think>(?P<thought>(?:(?!</?think>).)*)</think>(?P<rest>(?:(?!</?think>).)*)", re.DOTALL)
    found = [form.fullmatch(text_of(completion).strip()) for completion in completions]
    return [float(bool(m and m["thought"].strip() and m["rest"].strip())) for m in found]


BUILT_IN: Mapping[str, RewardFunction] = {
    "exact_answer": exact_answer,
    "numeric_answer": numeric_answer,
    "matches": matches,
    "valid_json": valid_json,
    "length_between": length_between,
    "think_format": think_format,
}
"""Name in a recipe -> function."""


def text_of(completion: Completion) -> str:
    """The words of a completion: a text as it is, of messages the content of the last one."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def _plain(text: str, ignore_case: bool) -> str:
    return text.strip().casefold() if ignore_case else text.strip()


def _same_number(text: str, answer: str, tolerance: Decimal) -> float | None:
    wanted, found = _number(answer), _number(text)
    if wanted is None:
        return None
    return float(found is not None and abs(found - wanted) <= tolerance)


def _number(text: str) -> Decimal | None:
    """The one number behind the last `####`, when there is one; else the last number of the text."""
    marks = MARKED.findall(text)
    numbers = NUMBER.findall(marks[-1] if marks else text)
    if not numbers or (marks and len(numbers) != 1):
        return None
    try:
        return Decimal(numbers[-1].replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def _fits(validator: Any, text: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.DOTALL)
    try:
        return validator.is_valid(json.loads(fenced[1] if fenced else text))
    except (ValueError, RecursionError):
        return False
