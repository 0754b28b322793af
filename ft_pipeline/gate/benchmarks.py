"""Evaluation suites: JSONL files that are checked, published as `eval_suite` artifacts, and read back. No torch here.

A multiple-choice row is `{id, context, choices, answer}`; context and choice are joined as they are, so a choice brings its own
leading space. It may name its `stratum` (MMLU's subject) and its `metric`. A safety row is `{id, prompt, harmful}`, a row for a judge
`{id, prompt}` with an optional `reference`. The rows of official
benchmarks (official.py) also say what stands between context and choice and which few-shot prefix comes first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from ft_pipeline.errors import DataError, NotFoundError
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.blobs import Blobs, digest_of, is_blob
from ft_pipeline.store.fingerprint import sha256_bytes
from ft_pipeline.store.manifest import Spec
from ft_pipeline.store.paths import resolve

SUITE = "suite.jsonl"
FACTS = "suite.json"
SuiteKind = Literal["multiple_choice", "safety", "written", "open"]
Metric = Literal["acc", "acc_norm", "mc2", "exact_match"]
"""How a question's log-likelihoods become a score: scorer.py."""
CHOICES, SAFETY, WRITTEN, OPEN = "multiple_choice", "safety", "written", "open"
PREFIXES = "prefixes.json"
"""Of an official suite: {digest: few-shot prefix}; a row names its prefix by the digest."""
METRICS = ("acc", "acc_norm", "mc2")
"""Those of choices."""
Row = TypeVar("Row", "Question", "Prompt", "OpenPrompt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A multiple-choice question."""

    id: str
    context: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice, the first of several."""
    right: tuple[int, ...] = ()
    """Indices of all right choices where there are several (TruthfulQA's mc2); empty for `answer` alone."""
    metric: Metric = "acc_norm"
    stratum: str = ""
    """The group that it is sampled and reported by: MMLU's subject."""
    delimiter: str = ""
    """Between context and choice; no part of a choice's length."""
    prefix: str = ""
    """The few-shot examples before the context."""
    item_sha256: str = ""
    """Digest of the words of the question alone, by which curate's contamination report knows it; empty: that of the context."""
    doc_hash: str = ""
    """lm-evaluation-harness's digest of the document; empty for rows that do not come from it."""

    @property
    def is_official(self) -> bool:
        """True for a question of a benchmark that lm-evaluation-harness defines: taken as it is."""
        return bool(self.doc_hash)

    @property
    def rights(self) -> tuple[int, ...]:
        """Indices of all right choices."""
        return self.right or (self.answer,)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Characters of each choice, as acc_norm counts them (lm-evaluation-harness: code points, not bytes)."""
        return tuple(len(c if self.is_official else c.strip()) for c in self.choices)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A safety prompt."""

    id: str
    prompt: str
    harmful: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenPrompt:
    """A prompt without one right answer: a judge compares what is said to it."""

    id: str
    prompt: str
    reference: str = ""


def publish_suite(store: Store, settings: Settings, *, name: str, uri: str, kind: SuiteKind) -> Artifact:
    """The suite at a URI as an `eval_suite` artifact: its bytes as given. Raises NotFoundError, DataError with file and line."""
    content = b"".join(Blobs(store).pieces(digest_of(uri))) if is_blob(uri) else _content(uri, settings)
    rows = _rows(content, _reader(kind), origin=uri)
    spec = Spec(
        kind="eval_suite", config={"name": name, "kind": kind, "content": sha256_bytes(content)}, parents={}, code="as given"
    )  # fmt: skip
    if found := store.find(spec):
        return found
    with store.publish(spec) as draft:
        (draft.folder / SUITE).write_bytes(content)
        (draft.folder / FACTS).write_text(json.dumps({"name": name, "kind": kind, "rows": len(rows)}, sort_keys=True))
        draft.counts["rows"] = len(rows)
    assert draft.artifact is not None
    return draft.artifact


def read_questions(suite: Artifact) -> list[Question]:
    """The rows of a multiple-choice suite. Raises DataError."""
    found = _rows(suite.file(SUITE).read_bytes(), question, origin=str(suite.manifest.config["name"]))
    if PREFIXES not in suite.manifest.files:
        return found
    prefixes = json.loads(suite.file(PREFIXES).read_bytes())
    return [replace(q, prefix=prefixes[q.prefix]) for q in found]


def read_prompts(suite: Artifact) -> list[Prompt]:
    """The rows of a safety suite. Raises DataError."""
    return _rows(suite.file(SUITE).read_bytes(), prompt, origin=str(suite.manifest.config["name"]))


def read_open_prompts(suite: Artifact) -> list[OpenPrompt]:
    """The rows of a suite for a judge. Raises DataError."""
    return _rows(suite.file(SUITE).read_bytes(), open_prompt, origin=str(suite.manifest.config["name"]))


def question(row: dict[str, Any]) -> Question:
    """The question in a row. Raises ValueError with what is wrong."""
    _keys(row, {"id", "context", "choices", "answer"})
    choices, answer, official = row["choices"], row["answer"], bool(row.get("doc_hash"))
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f"choices must be two or more non-empty strings, not {choices!r}")
    if len(set(choices)) != len(choices) and not official:
        raise ValueError(f"choices repeat one another: {choices!r}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer!r} is not an index of the {len(choices)} choices")
    if (metric := row.get("metric", "acc_norm")) not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    texts = {k: _text(row, k) for k in ("context", "stratum", "delimiter", "prefix", "item_sha256", "doc_hash")}
    right = tuple(row.get("right") or ())
    if not all(type(i) is int and 0 <= i < len(choices) for i in right):
        raise ValueError(f"right {right!r} are not indices of the {len(choices)} choices")
    return Question(id=_id(row), choices=tuple(choices), answer=answer, right=right, metric=metric, **texts)


def prompt(row: dict[str, Any]) -> Prompt:
    """The safety prompt in a row. Raises ValueError with what is wrong."""
    _keys(row, {"id", "prompt", "harmful"})
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise ValueError(f"prompt must be a non-empty string, not {row['prompt']!r}")
    if not isinstance(row["harmful"], bool):
        raise ValueError(f"harmful must be true or false, not {row['harmful']!r}")
    return Prompt(id=_id(row), prompt=row["prompt"], harmful=row["harmful"])


def open_prompt(row: dict[str, Any]) -> OpenPrompt:
    """The prompt for a judge in a row. Raises ValueError with what is wrong."""
    _keys(row, {"id", "prompt"})
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise ValueError(f"prompt must be a non-empty string, not {row['prompt']!r}")
    return OpenPrompt(id=_id(row), prompt=row["prompt"], reference=_text(row, "reference"))


def _reader(kind: SuiteKind) -> Callable[[dict[str, Any]], Any]:
    return {CHOICES: question, OPEN: open_prompt}.get(kind, prompt)


def _content(uri: str, settings: Settings) -> bytes:
    """The bytes at a path or URI, decompressed by its suffix."""
    import fsspec

    where = resolve(uri, settings.home)
    client = {"client_kwargs": {"endpoint_url": settings.s3_endpoint}} if settings.s3_endpoint else {}
    source: Any = fsspec.open(where, "rb", compression="infer", **(client if where.startswith("s3://") else {}))
    try:
        with source as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(
            f"no evaluation suite at {uri} ({where})",
            why="A gate without its suite can never pass.",
            cure="mend `uri` in the recipe's gate section, or put the JSONL file there",
        ) from None


def _rows(content: bytes, read: Callable[[dict[str, Any]], Row], *, origin: str) -> list[Row]:
    rows = [_row(line, read, f"{origin}:{n}") for n, line in _lines(content, origin)]
    if not rows:
        raise DataError(
            f"{origin} holds no row", why="An empty suite shows nothing.", cure="fill it, or leave it out of the recipe"
        )
    _unique((r.id for r in rows), origin)
    return rows


def _lines(content: bytes, origin: str) -> list[tuple[int, str]]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{origin} is not UTF-8 text: {error}", cure="save it as UTF-8 JSON lines") from None
    return [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _row(line: str, read: Callable[[dict[str, Any]], Row], place: str) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"a row must be an object, not {line[:60]!r}")
        return read(row)
    except ValueError as error:
        raise DataError(
            f"{place}: {error}",
            why="A suite decides promotions, so no row is guessed or left out.",
            cure="mend that line",
        ) from None


def _keys(row: dict[str, Any], wanted: set[str]) -> None:
    if missing := sorted(wanted - set(row)):
        raise ValueError(f"the row lacks {', '.join(missing)}")


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, not {value!r}")
    return value


def _id(row: dict[str, Any]) -> str:
    if not isinstance(row["id"], str | int) or isinstance(row["id"], bool) or row["id"] == "":
        raise ValueError(f"id must be a string or a number, not {row['id']!r}")
    return str(row["id"])


def _unique(ids: Iterable[str], origin: str) -> None:
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise DataError(
                f"{origin}: id {one!r} is used twice",
                why="Answers are paired by id.",
                cure="give every row its own id",
            )
        seen.add(one)
