"""What is in a file of rows: layouts, rejected rows with their reasons, lengths, roles, equal rows. The same reading as curate's, without its filters.

Runs in a child process for all but small plain files (`python -m ft_pipeline.web.report JSON`): a hostile Parquet file ends that process,
and hours of reading hold no thread of the API.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.curate.artifact import Rejection
from ft_pipeline.curate.blocks import Block, Rows, blocks
from ft_pipeline.curate.normalize import normalize
from ft_pipeline.curate.read import RawRow, rows_of_block
from ft_pipeline.curate.validate import ControlTokens, reason_to_reject
from ft_pipeline.errors import DataError, FtError
from ft_pipeline.web.sniff import Unpacking
from ft_pipeline.workers.child import die_with_parent

EXAMPLES = 3
COMPARED_ROWS = 2_000_000
"""Rows whose equality is looked at: 100 bytes each while the report is made."""
MOST_ROWS = 50_000_000
BYTES_A_TOKEN = 4.2
"""Of text, when no tokenizer is asked (planning/prices.yaml says the same of raw JSON)."""
BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Upper ends of the length histogram, in tokens."""
COUNTED_ROWS = 20_000
"""Rows that are really tokenised; the rest is estimated by their mean."""
NICE = 10
MEMORY_BYTES = 8 << 30
"""Address space of the child; resident it stays far below: 4 MiB of rows at a time."""
NOT_CHECKED = (
    "near duplicates, contamination by benchmarks, personal data, toxicity, quality, language and control tokens of the base model: "
    "the run's curation looks for them and writes every dropped row into its ledger"
)
Count = Callable[[str], int]


@dataclass
class Report:
    """Counts over all rows."""

    rows: int = 0
    usable: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    text_bytes: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    longest: int = 0
    equal: int = 0
    counted_rows: int = 0
    counted_tokens: int = 0
    counted_bytes: int = 0
    _seen: set[int] = field(default_factory=set)

    def add(self, line: int, raw: RawRow, count: Count | None = None) -> None:
        """One row, as curate would take it."""
        self.rows += 1
        if self.rows > MOST_ROWS:
            raise DataError(f"more than {MOST_ROWS:,} rows", cure="bring it in several files")
        found = _read(raw)
        if isinstance(found, Rejection):
            self._reject(line, found)
            return
        layout, shape, content, changes = found
        self.usable += 1
        self.layouts[layout] += 1
        self.shapes[shape] += 1
        self.changes.update(str(change.reason) for change in changes)
        self.roles.update(turn["role"] for turn in _turns(content))
        self._measure(content, count)
        self._compare(raw.key)

    def _reject(self, line: int, found: Rejection) -> None:
        reason = str(found.reason)
        self.reasons[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            told = {"line": line, "path": harmless(found.path), "value": harmless(found.value)}
            self.examples[reason].append(told)

    def _measure(self, content: Mapping[str, Any], count: Count | None) -> None:
        size = sum(len(text.encode("utf-8", "replace")) for text in _texts(content))
        self.text_bytes += size
        tokens = round(size / BYTES_A_TOKEN)
        if count is not None and self.counted_rows < COUNTED_ROWS:
            tokens = sum(count(text) for text in _texts(content))
            self.counted_rows += 1
            self.counted_tokens += tokens
            self.counted_bytes += size
        self.longest = max(self.longest, tokens)
        self.lengths[next((end for end in BUCKETS if tokens <= end), 0)] += 1

    def _compare(self, key: str) -> None:
        number = int(key[:16], 16)
        if number in self._seen:
            self.equal += 1
        elif len(self._seen) < COMPARED_ROWS:
            self._seen.add(number)

    def told(self, *, tokenizer: str | None = None) -> dict[str, Any]:
        """As JSON."""
        rejected = self.rows - self.usable
        return {
            "rows": self.rows,
            "usable_rows": self.usable,
            "rejected_rows": rejected,
            "rejected_share": _share(rejected, self.rows),
            "rejected": [
                {"reason": reason, "rows": rows, "examples": self.examples[reason]}
                for reason, rows in self.reasons.most_common()
            ],
            "changed": dict(self.changes),
            "layouts": dict(self.layouts.most_common()),
            "shapes": dict(self.shapes.most_common()),
            "roles": dict(self.roles.most_common()),
            "duplicates": {"equal_rows": self.equal, "share": _share(self.equal, self.usable)},
            "tokens": self._tokens(tokenizer),
            "length_histogram": [
                {"up_to_tokens": end or None, "rows": self.lengths[end]} for end in (*BUCKETS, 0) if self.lengths[end]
            ],
            "longest_row_tokens": self.longest,
            "warnings": self._warnings(),
            "not_checked": NOT_CHECKED,
        }

    def _tokens(self, tokenizer: str | None) -> dict[str, Any]:
        if not self.counted_rows:
            total = round(self.text_bytes / BYTES_A_TOKEN)
            return {"total": total, "method": f"estimated: {BYTES_A_TOKEN} bytes of text a token", "counted_rows": 0}
        rest = self.text_bytes - self.counted_bytes
        total = self.counted_tokens + round(rest * self.counted_tokens / max(1, self.counted_bytes))
        method = f"tokenizer of {tokenizer}, without the marks of its chat template"
        return {"total": total, "method": method, "counted_rows": self.counted_rows}

    def _warnings(self) -> list[str]:
        made = []
        if len(self.shapes) > 1:
            made.append(f"rows of {len(self.shapes)} shapes in one file: a method trains on one of them")
        if self.rows and self.rows - self.usable > self.rows / 2:
            made.append("more than half of the rows are rejected: a run refuses that (curate.max_rejected_share)")
        if 0 < self.usable < 10:
            made.append(f"only {self.usable} usable rows: at least 10, better 50 or more, are needed to learn anything")
        return made


def report_of(path: Path, suffix: str, *, count: Count | None = None, tokenizer: str | None = None) -> dict[str, Any]:
    """The report of a file of rows. Raises DataError for one that is damaged as a whole, and for a decompression bomb."""
    began, seen, report = time.monotonic(), Unpacking(), Report()
    name = f"rows{suffix}"
    for block in blocks("dataset", {name: path}, seen.read, sha256={}):
        if suffix.endswith((".gz", ".zst")):
            seen.made(_size(block))
        for row in _rows(block):
            report.add(block.first + row.number, row, count)
    told = report.told(tokenizer=tokenizer)
    return {"format": suffix.lstrip("."), "seconds": round(time.monotonic() - began, 3), **told}


def refusal_in(report: Mapping[str, Any]) -> str | None:
    """Why nothing can be trained on a file, None when something can."""
    if report["usable_rows"]:
        return None
    if not report["rows"]:
        return "the file holds no rows"
    first = report["rejected"][0]
    example = first["examples"][0]
    return f"none of {report['rows']:,} rows can be trained on; line {example['line']}: {first['reason']} {example['path']} {example['value']}"[
        :500
    ]


def harmless(text: str) -> str:
    """Quoted from a hostile row: without NUL and lone surrogates, which neither JSON answers nor PostgreSQL take."""
    return text.replace("\x00", "\\u0000").encode("utf-8", "backslashreplace").decode()


def _rows(block: Block) -> Iterator[RawRow]:
    try:
        yield from rows_of_block(block)
    except RecursionError:
        raise DataError(
            f"rows from line {block.first} on are nested deeper than can be followed", cure="flatten them"
        ) from None


def _read(raw: RawRow) -> Rejection | tuple[str, str, Mapping[str, Any], tuple[Rejection, ...]]:
    if raw.value is None:
        if raw.rejection is None:
            raise RuntimeError("a row is a value or a rejection")
        return raw.rejection
    normal = normalize(raw.value, "auto")
    if isinstance(normal, Rejection):
        return normal
    found = reason_to_reject(normal.shape, normal.content, ControlTokens(()))
    return found or (normal.layout, normal.shape, normal.content, normal.changes)


def _turns(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in ("messages", "prompt", "completion", "chosen", "rejected"):
        if isinstance(content.get(key), list):
            yield from content[key]


def _texts(value: Any) -> Iterator[str]:
    """What is said in a row: every text but the names of the schema."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("role", "type", "weight"):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _size(block: Block) -> int:
    found = block.payload
    if isinstance(found, Rows):
        return 0
    return (
        found.num_bytes
        if not isinstance(found, bytes | tuple)
        else sum(map(len, found))
        if isinstance(found, tuple)
        else len(found)
    )


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def counter_at(tokenizer: Path) -> Count:
    """Counts tokens with a `tokenizer.json`."""
    from tokenizers import Tokenizer

    opened = Tokenizer.from_file(str(tokenizer))
    return lambda text: len(opened.encode(text, add_special_tokens=False).ids)


def main(argv: list[str]) -> int:
    """argv[1]: {path, suffix, parent, tokenizer, tokenizer_name} as JSON. Prints the report, or {"error": sentences}; exit 0 for both."""
    asked = json.loads(argv[1])
    if "parent" in asked:
        die_with_parent(asked["parent"])
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        count = counter_at(Path(asked["tokenizer"])) if asked.get("tokenizer") else None
        told = report_of(Path(asked["path"]), asked["suffix"], count=count, tokenizer=asked.get("tokenizer_name"))
    except FtError as error:
        told = {"error": str(error)}
    sys.stdout.write(json.dumps(told, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
