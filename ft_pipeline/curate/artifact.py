"""What curate hands on: `curated_dataset`, its files and columns, and the reasons why a row is not in it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.fingerprint import sha256_bytes

CURATED_KIND = "curated_dataset"
SPLITS = ("train", "validation", "holdout")
LEDGER = "ledger.parquet"
EDGES = "edges.parquet"
FLAGS = "flags.parquet"
STATISTICS = "statistics.json"
CROISSANT = "croissant.json"
CONTAMINATION = "contamination.parquet"
"""Benchmark items that stand in rows of the dataset; absent when the recipe names no benchmark."""

ROW_COLUMNS = ("row_id", "shape", "content", "cluster", "origin", "source")
"""Of `train.parquet`, `validation.parquet`, `holdout.parquet`, all text.

content is canonical JSON by shape: chat {"messages": [{"role", "content", ("tool_calls", "tool_call_id", "name", "weight")}],
("tools")}; completion {"prompt", "completion"}; preference {"prompt": [messages], "chosen": [messages], "rejected": [messages],
("tools")}; kto {"prompt": [messages], "completion": [messages], "label": bool, ("tools")}; rlvr {"prompt": [messages],
"answer": text, ("tools")}; stepwise {"prompt": [messages], "steps": [text], "labels": [bool], ("tools")}; text {"text"}.
"""
LEDGER_COLUMNS = ("row_id", "origin", "action", "stage", "reason", "evidence", "excerpt")
"""All text. action: dropped or changed; evidence: JSON; excerpt: the first 160 characters of the row."""
FLAG_COLUMNS = ("row_id", "origin", "filter", "action", "reason", "evidence")
"""All text. What the filters found: action drop, change or note; a row may have several."""
EDGE_COLUMNS = ("kept_id", "other_id", "relation", "whole_j", "prompt_j", "response_j", "band")
"""relation: duplicate (other_id is dropped), variant (both are kept, in one split), conflict (same prompt, other answer)."""

CONTAMINATION_COLUMNS = (
    "benchmark", "item_id", "item_sha256", "rows", "rows_trained", "bench_cov", "train_frac", "row_ids", "text",
)  # fmt: skip
"""A row per benchmark item. rows: rows that hold it; rows_trained: those of them in the train split; bench_cov, train_frac: the
largest over the rows; row_ids: JSON, the first five; text: what stands in the first row. item_id is empty for text that so many
items share that it names none."""

Shape = Literal["chat", "completion", "preference", "kto", "rlvr", "stepwise", "text"]
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
    EMPTY_STEP = "empty_step"
    STEP_LABELS = "step_labels"
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
    FORGOTTEN = "forgotten"


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


def item_words(text: str) -> list[str]:
    """Runs of letters and digits in NFC and lower case."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).lower())


def item_sha256(question: str) -> str:
    """Digest of the words of a benchmark's question, by which a suite's item is known again. `Question: ... Answer:` around it is
    no part of it."""
    words = item_words(question)
    words = words[1:] if words[:1] in (["question"], ["q"]) else words
    words = words[:-1] if words[-1:] in (["answer"], ["a"]) else words
    return sha256_bytes(" ".join(words).encode("utf-8", "surrogatepass"))


def rows_of(curated: Artifact, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split in order, `content` parsed."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(curated.file(f"{split}.parquet")).iter_batches(1024):
        for row in batch.to_pylist():
            yield {**row, "content": json.loads(row["content"])}


def rows_that_hold(
    texts: Iterable[str], held: Mapping[str, str], *, threshold: float
) -> Iterator[tuple[int, str, float]]:
    """Place of a text, id of what stands in it, and the share of its word sequences that do: as `contamination` looks for benchmarks.

    `held`: id -> what is looked for, texts of 8 words or more. Lexical only: a paraphrase is not found. About 6 us a text.
    """
    from ft_pipeline.curate.benchmark_index import holdout_index
    from ft_pipeline.curate.contamination import Scanner

    if not held:
        return
    scanner = Scanner([holdout_index(list(held.values()), list(held))], threshold=threshold, action="note")
    for start, batch in batches(texts):
        yield from ((start + hit.row, hit.item_id, hit.bench_cov) for hit in scanner.scan(batch) if hit.item_id)


def batches(texts: Iterable[str], size: int = 1024) -> Iterator[tuple[int, list[str]]]:
    """Texts in lists, each with the place of its first one."""
    start, batch = 0, []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield start, batch
            start, batch = start + size, []
    if batch:
        yield start, batch


def statistics_of(curated: Artifact) -> dict[str, Any]:
    """The content of `statistics.json`."""
    return json.loads(curated.file(STATISTICS).read_bytes())
