"""The recipe's own holdout: what is asked and what was expected. No torch here."""

from __future__ import annotations

import json
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


def read_tasks(curated: Artifact, usable: Callable[[str], bool] = bool) -> tuple[list[Task], int]:
    """The holdout rows that have an answer to compare with, and how many have none.

    None: plain text, tool calls without words, and a reference that the metric cannot use (`usable`), such as one without a number.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(curated.file(HOLDOUT), columns=["row_id", "shape", "content"]).to_pylist()
    tasks = [task(r["row_id"], r["shape"], json.loads(r["content"])) for r in rows]
    found = [t for t in tasks if t and usable(t.reference)]
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


def _dialogue(row_id: str, messages: list[dict[str, Any]], tools: Any) -> Task | None:
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    if not last or not messages[last].get("content"):
        return None
    before = tuple({k: v for k, v in m.items() if k != "weight"} for m in messages[:last])
    return Task(id=row_id, messages=before, tools=tools or None, reference=messages[last]["content"])


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]
