"""Metrics of form: JSON, patterns, numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from ft_pipeline.gate.metrics.metric import Metric

FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
NUMBER = re.compile(
    r"(?<![\w.])[-+]?[$\u20ac\u00a3]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w]|\.\d)"
)
"""1234, 1,234.5, -3, $7, 1e-3: no part of a word, of a version or of a date with dots."""
MARKED = re.compile(r"####\s*(.*?)\s*$", re.MULTILINE)
"""GSM8K writes its answer behind four hashes on a line (arXiv 2110.14168)."""


def json_schema(*, schema: Mapping[str, Any]) -> Metric:
    """1 where the answer is one JSON value that the schema (draft 2020-12) allows, in a ```json fence or bare."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema)
    return Metric(score=lambda _reference, answer: float(_fits(validator, answer)))


def json_equal() -> Metric:
    """1 where answer and reference are the same JSON value: the order of keys and 1 against 1.0 make no difference."""
    return Metric(
        score=lambda reference, answer: float(_is_json(answer) and _same(_value(reference), _value(answer))),
        usable=_is_json,
    )


def regex(*, pattern: str, group: int = 0) -> Metric:
    """1 where the pattern matches the whole answer (DOTALL); with `group`, where what that group holds is the reference too."""
    compiled = re.compile(pattern, re.DOTALL)

    def score(reference: str, answer: str) -> float:
        found = compiled.fullmatch(answer.strip())
        return float(found is not None and (not group or (found[group] or "").strip() == reference.strip()))

    return Metric(score=score)


def numeric(*, tolerance: float = 0.0, relative: float = 0.0) -> Metric:
    """1 where the number behind `####`, or else the last one, is the reference's within tolerance + relative * |reference|."""
    absolute, share = Decimal(str(tolerance)), Decimal(str(relative))

    def score(reference: str, answer: str) -> float:
        wanted, found = last_number(reference), last_number(answer)
        return float(wanted is not None and found is not None and abs(found - wanted) <= absolute + share * abs(wanted))

    return Metric(score=score, usable=lambda reference: last_number(reference) is not None)


def last_number(text: str) -> Decimal | None:
    """The number behind the last `####`, else the last number of the text."""
    marks = MARKED.findall(text)
    found = NUMBER.findall(marks[-1] if marks else text)
    try:
        return Decimal(re.sub(r"[,$\u20ac\u00a3]", "", found[-1])) if found else None
    except InvalidOperation:
        return None


def _value(text: str) -> Any:
    fenced = FENCE.fullmatch(text.strip())
    return json.loads(fenced[1] if fenced else text, parse_constant=_no_number)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_json(text: str) -> bool:
    try:
        _value(text)
    except (ValueError, RecursionError):
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def _fits(validator: Any, text: str) -> bool:
    return _is_json(text) and validator.is_valid(_value(text))
