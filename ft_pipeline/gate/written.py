"""Benchmarks that are answered in words (GSM8K): their questions, where an answer ends, and how the result is found in it. No torch here.

The rules are lm-evaluation-harness's own (a regular expression, then exact match), kept in the suite when it was built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.gate.benchmarks import FACTS, PREFIXES, SUITE, WRITTEN, Question, read_questions
from ft_pipeline.store.artifacts import Artifact

NO_MATCH = "[invalid]"
"""What lm-evaluation-harness puts where its expression finds nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exercise:
    """A question that is answered in words."""

    id: str
    prefix: str
    """The few-shot examples before the context."""
    context: str
    target: str
    """The reference answer, its working included."""
    stratum: str
    item_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How the answers of a suite are read."""

    until: tuple[str, ...]
    """An answer ends before the first of these."""
    max_new_tokens: int
    regex: str
    group: int
    """Which of all matches counts: 0 the first, -1 the last."""
    ignore: tuple[str, ...]
    """Expressions that are removed before answers are compared."""
    ignore_case: bool


def read_exercises(suite: Artifact) -> tuple[list[Exercise], Rules]:
    """The questions and the rules of a suite of kind `written`."""
    prefixes = json.loads(suite.file(PREFIXES).read_bytes())
    rows = [json.loads(line) for line in suite.file(SUITE).read_bytes().splitlines()]
    facts = json.loads(suite.file(FACTS).read_bytes())
    given: dict[str, Any] = {n: facts[n] for n in Rules.__dataclass_fields__}
    given.update(until=tuple(given["until"]), ignore=tuple(given["ignore"]))
    rules = Rules(**given)
    return [_exercise(row, prefixes) for row in rows], rules


def read_asked(suite: Artifact) -> Sequence[Question | Exercise]:
    """The questions of a benchmark's suite, of either kind."""
    return read_exercises(suite)[0] if suite.manifest.config.get("kind") == WRITTEN else read_questions(suite)


def cut(text: str, rules: Rules) -> str:
    """The answer before the first thing that ends it."""
    for end in rules.until:
        text = text.split(end)[0]
    return text


def result(text: str, rules: Rules) -> str:
    """What the answer comes to."""
    found = re.findall(rules.regex, text)
    if not found:
        return NO_MATCH
    chosen = found[rules.group]
    parts = [part for part in chosen if part] if isinstance(chosen, tuple) else [chosen]
    return parts[0].strip() if parts else NO_MATCH


def is_right(text: str, target: str, rules: Rules) -> bool:
    """True when the result in the answer is the target's."""
    return _compared(result(text, rules), rules) == _compared(target, rules)


def _compared(text: str, rules: Rules) -> str:
    for expression in rules.ignore:
        text = re.sub(expression, "", text)
    return text.lower() if rules.ignore_case else text


def _exercise(row: dict[str, Any], prefixes: dict[str, str]) -> Exercise:
    kept = {name: row[name] for name in Exercise.__dataclass_fields__}
    return Exercise(**{**kept, "prefix": prefixes[row["prefix"]]})
