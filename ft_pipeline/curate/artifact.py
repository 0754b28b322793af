"""What curate hands on: `curated_dataset`, its files and columns, and the reasons why a row is not in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from ft_pipeline.store.artifacts import Artifact

CURATED_KIND = "curated_dataset"
SPLITS = ("train", "validation", "holdout")
LEDGER = "ledger.parquet"
EDGES = "edges.parquet"
STATISTICS = "statistics.json"

ROW_COLUMNS = ("row_id", "shape", "content", "cluster", "origin")
"""Of `train.parquet`, `validation.parquet`, `holdout.parquet`, all text.

content is canonical JSON by shape: chat {"messages": [{"role", "content", ("tool_calls", "tool_call_id", "name", "weight")}],
("tools")}; completion {"prompt", "completion"}; preference {"prompt": [messages], "chosen": [messages], "rejected": [messages],
("tools")}; kto {"prompt": [messages], "completion": [messages], "label": bool, ("tools")}; rlvr {"prompt": [messages],
"answer": text, ("tools")}; text {"text"}.
"""
LEDGER_COLUMNS = ("row_id", "origin", "action", "stage", "reason", "evidence", "excerpt")
"""All text. action: dropped or changed; evidence: JSON; excerpt: the first 160 characters of the row."""
EDGE_COLUMNS = ("kept_id", "other_id", "relation", "whole_j", "prompt_j", "response_j", "band")
"""relation: duplicate (other_id is dropped), variant (both are kept, in one split), conflict (same prompt, other answer)."""

Shape = Literal["chat", "completion", "preference", "kto", "rlvr", "text"]
EXCERPT_CHARACTERS = 160


class Reason(StrEnum):
    """Why a row was dropped or changed."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    DUPLICATE_KEY = "duplicate_key"
    TOO_LONG_LINE = "too_long_line"
    INVALID_UTF8 = "invalid_utf8"
    UNKNOWN_LAYOUT = "unknown_layout"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_ROLE = "unknown_role"
    ROLE_ORDER = "role_order"
    EMPTY_TURN = "empty_turn"
    EMPTY_TEXT = "empty_text"
    EMPTY_SYSTEM = "empty_system"
    NO_FINAL_ASSISTANT = "no_final_assistant"
    NOTHING_TO_TRAIN = "nothing_to_train"
    MISSING_PROMPT = "missing_prompt"
    SAME_ANSWERS = "same_answers"
    TOOL_RESULT_WITHOUT_CALL = "tool_result_without_call"
    CONTROL_TOKEN = "control_token"  # noqa: S105
    NUL_CHARACTER = "nul_character"
    MOJIBAKE = "mojibake"
    IMAGE = "image"
    MAPPING_FAILED = "mapping_failed"
    TOOL_CALL_WITHOUT_RESULT = "tool_call_without_result"
    LOW_QUALITY = "low_quality"
    OTHER_LANGUAGE = "other_language"
    PERSONAL_DATA = "personal_data"
    TOXIC = "toxic"
    CONTAMINATED = "contaminated"
    NOT_DRAWN = "not_drawn"
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A reason with its evidence: where in the row, and what stands there."""

    reason: Reason
    path: str
    """`messages[2].role`; empty for the whole row."""
    value: str
    """The first characters of what stands there."""

    def evidence(self) -> str:
        """As the ledger keeps it."""
        return json.dumps({"path": self.path, "value": self.value}, ensure_ascii=True)


def rejected(reason: Reason, path: str, value: Any) -> Rejection:
    """A rejection that quotes a value of any type."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return Rejection(reason=reason, path=path, value=text[:80])


def rows_of(curated: Artifact, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split in order, `content` parsed."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(curated.file(f"{split}.parquet")).iter_batches(1024):
        for row in batch.to_pylist():
            yield {**row, "content": json.loads(row["content"])}


def statistics_of(curated: Artifact) -> dict[str, Any]:
    """The content of `statistics.json`."""
    return json.loads(curated.file(STATISTICS).read_bytes())
