"""Items of a benchmark: what each question is called, and the texts in which a training row would hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.curate.artifact import item_sha256, item_words
from ft_pipeline.curate.benchmark_files import rows
from ft_pipeline.errors import DataError

QUESTIONS = (
    "question",
    "ctx",
    "prompt",
    "query",
    "problem",
    "sentence",
    "instruction",
    "context",
    "passage",
    "text",
    "input",
    "stem",
)
"""Columns that hold the question, first found wins; names are compared in lower case."""
PASSAGES = ("context", "passage", "article", "support", "input")
"""What a question may be about, put before it."""
CHOICES = ("choices", "endings", "options", "mc1_targets", "context_options", "candidates")
SINGLE_CHOICES = (("a", "b", "c", "d", "e"), ("option1", "option2"), ("sol1", "sol2"), ("choice1", "choice2"))
IDS = ("id", "question_id", "task_id", "item_id", "ind", "uid", "qid")
ALONE_WORDS = 8
"""A question of fewer words is not looked for inside a line, so it is also indexed with its choices under letters."""
NESTED = "doc"
"""A request of an evaluation harness keeps the item there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item of a benchmark."""

    benchmark: str
    item_id: str
    text: str
    """The question alone."""
    texts: tuple[str, ...]
    """Each way to say the item: the question alone, with its passage, with its choices."""

    @property
    def sha256(self) -> str:
        """By which a gate's suite knows it again."""
        return item_sha256(self.text)


def read_items(benchmark: str, files: Mapping[str, Path]) -> list[Item]:
    """Every item of a benchmark once, in order. `files`: name relative to the benchmark's folder -> local path.

    An item is called by its own id when all ids differ, else by `file#number`. Raises DataError: no file with rows, or no column
    that is known to hold a question.
    """
    found: dict[tuple[str, ...], tuple[str, Any]] = {}
    columns: set[str] = set()
    for place, row in rows(benchmark, files):
        body = {key.lower(): value for key, value in _body(row).items()}
        columns |= body.keys()
        if texts := _texts(body):
            found.setdefault(texts, (place, next((body[c] for c in IDS if body.get(c) not in (None, "")), None)))
    if not found:
        raise DataError(
            f"benchmark {benchmark} has no column with a question: {', '.join(sorted(columns)[:12]) or 'no rows'}",
            why=f"A question is read from one of {', '.join(QUESTIONS)}.",
            cure="rename the column, or leave the benchmark out of the recipe",
        )
    own = len({str(name) for _, name in found.values() if name is not None}) == len(found)
    return [
        Item(benchmark=benchmark, item_id=str(name) if own else place, text=texts[0], texts=texts)
        for texts, (place, name) in found.items()
    ]


def _body(row: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = row.get(NESTED)
    return inner if isinstance(inner, Mapping) and not any(c in row for c in QUESTIONS) else row


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The question first; empty when there is none."""
    column = next((c for c in QUESTIONS if _words(row.get(c))), None)
    choices = _choices(row)
    if column is None:
        return tuple(f"{c} {row['continuation']}" for c in choices if "continuation" in row)
    question = row[column]
    if isinstance(question, Mapping):  # ARC's own files: {"stem": ..., "choices": [...]}
        question, choices = _words(question), _choices(question)
    forms = [question]
    forms += [
        f"{row[p]}\n{question}" for p in PASSAGES if p != column and isinstance(row.get(p), str) and row[p].strip()
    ]
    if choices:
        forms.append(f"{question}\n{' '.join(choices)}")
    if len(choices) > 1 and len(item_words(question)) < ALONE_WORDS:
        forms.append(f"{question}\n{_lettered(choices)}")
    if "_" in question and "option1" in row:
        forms += [question.replace("_", choice) for choice in choices]
    return tuple(dict.fromkeys(forms))


def _lettered(choices: list[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEFGHIJKLMNOP", choices, strict=False))


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("stem")
    return value if isinstance(value, str) and value.strip() else ""


def _choices(row: Mapping[str, Any]) -> list[str]:
    for column in CHOICES:
        if found := list(_flat(row.get(column))):
            return found
    for columns in SINGLE_CHOICES:
        if all(_words(row.get(c)) for c in columns[:2]):
            return [row[c] for c in columns if _words(row.get(c))]
    return []


def _flat(value: Any) -> Iterator[str]:
    """Choices as a list, {"text": [...]}, a list of {"text": ...}, or a list printed as text: its words are the same."""
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, Mapping):
        yield from _flat(value.get("text", value.get("choices")))
    elif isinstance(value, list):
        for one in value:
            yield from _flat(one)
