"""The recipe's own holdout: what is asked, what was expected, and how near an answer comes to it. No torch here."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ft_pipeline.store.artifacts import Artifact

HOLDOUT = "holdout.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One holdout row as a question with its reference answer."""

    id: str
    messages: tuple[dict[str, Any], ...] = ()
    """The conversation before the last assistant turn; empty for a plain prompt."""
    tools: Any = None
    prompt: str = ""
    """A plain prompt, for rows that are no conversation."""
    reference: str


def read_tasks(curated: Artifact) -> tuple[list[Task], int]:
    """The holdout rows that have an answer to compare with, and how many have none (plain text, tool calls without words)."""
    import pyarrow.parquet as pq

    rows = pq.read_table(curated.file(HOLDOUT), columns=["row_id", "shape", "content"]).to_pylist()
    tasks = [task(r["row_id"], r["shape"], json.loads(r["content"])) for r in rows]
    found = [t for t in tasks if t]
    return found, len(rows) - len(found)


def task(row_id: str, shape: str, content: dict[str, Any]) -> Task | None:
    """The question in a curated row, None when it has no reference answer."""
    if shape == "completion":
        return Task(id=row_id, prompt=content["prompt"], reference=content["completion"])
    if shape == "preference":
        return _dialogue(row_id, [*_turns(content["prompt"], "user"), *_turns(content["chosen"], "assistant")], None)
    if shape == "chat":
        return _dialogue(row_id, content["messages"], content.get("tools"))
    return None


def exact_match(reference: str, answer: str) -> float:
    """1.0 when both are the same text, apart from white space and Unicode composition; case counts."""
    return float(_plain(reference) == _plain(answer))


def token_f1(reference: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bag of lower-case words, as in SQuAD (arXiv 1606.05250)."""
    want, got = _words(reference), _words(answer)
    return _f1(sum((Counter(want) & Counter(got)).values()), len(want), len(got))


def rouge_l(reference: str, answer: str) -> float:
    """F-measure of the longest common subsequence of lower-case words (Lin 2004), in [0, 1]."""
    want, got = _words(reference), _words(answer)
    row = [0] * (len(got) + 1)
    for word in want:
        diagonal = 0
        for j, other in enumerate(got, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return _f1(row[-1], len(want), len(got))


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}
"""By the name in the recipe; each takes (reference, answer) and gives a share in [0, 1]."""


def _dialogue(row_id: str, messages: list[dict[str, Any]], tools: Any) -> Task | None:
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    if not last or not messages[last].get("content"):
        return None
    before = tuple({k: v for k, v in m.items() if k != "weight"} for m in messages[:last])
    return Task(id=row_id, messages=before, tools=tools or None, reference=messages[last]["content"])


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _f1(common: int, wanted: int, got: int) -> float:
    return 2 * common / (wanted + got) if wanted + got else 1.0
