"""Asks many calls, several at a time, and writes every one down as it comes: a killed run asks none of them again.

A row: `{kind, item, order, form, prompt_sha, request, response, verdict, parsed_by, error, attempts, latency_seconds, usage, ...}`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.judging.forms import Form
from ft_pipeline.judging.judge import UNREADABLE, Opinion, Speaker, ask
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import sha256_json, sha256_rows

TRANSCRIPTS = "transcripts.jsonl"
GIVE_UP_CALLS = 20
"""When the first so many calls all got no reply, the rest is not asked: 400 calls of five attempts each would wait for hours."""
NOT_ASKED = f"not asked: the first {GIVE_UP_CALLS} calls got no reply"
CHANGING = ("latency_seconds", "usage", "attempts")
"""Of a row: what differs when the same call is made again. No part of the digest."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One form, filled in."""

    kind: str
    """What it is for: pair, identical, spoilt, harm, refusal."""
    item: str
    """Id of the prompt."""
    order: str
    form: Form
    fields: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row."""

    @property
    def key(self) -> str:
        """Equal for the same question for the same purpose."""
        return sha256_json([self.kind, self.item, self.order, self.form.sha256, list(self.form.messages(self.fields))])


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How calls are made."""

    speaker: Speaker
    path: Path
    """The file that rows are appended to while they come."""
    calls_at_once: int = 1
    stopped: Callable[[], bool] = lambda: False
    tick: Callable[[int, int], None] = lambda _done, _total: None


def ask_all(calls: Sequence[Call], how: Asking) -> list[Row] | None:
    """A row for each call, in order; None when it was stopped before the last. Only calls without a reply on file are made."""
    known = {row["key"]: row for row in read_rows(how.path) if row["error"] in ("", UNREADABLE)}
    _rewrite(how.path, known.values())
    missing = [call for call in calls if call.key not in known]
    if not _ask(missing, how, known):
        return None
    return [known.get(call.key) or row_of(call, Opinion(label=None, error=NOT_ASKED)) for call in calls]


def row_of(call: Call, opinion: Opinion) -> Row:
    """The row of a call."""
    return {
        "key": call.key, "kind": call.kind, "item": call.item, "order": call.order, "form": call.form.name,
        "prompt_sha": call.form.sha256, "request": list(call.form.messages(call.fields)), "response": opinion.raw,
        "verdict": opinion.label, "parsed_by": opinion.parsed_by, "error": opinion.error, "attempts": opinion.attempts,
        "latency_seconds": opinion.latency_seconds, "usage": dict(opinion.usage), **call.facts,
    }  # fmt: skip


def read_rows(path: Path) -> list[Row]:
    """The rows of a transcript; a last line that a killed process left half written is none."""
    return list(_rows(path)) if path.is_file() else []


def write_rows(path: Path, rows: Iterable[Row]) -> str:
    """Writes a transcript and returns its digest, which the time and price of calls are no part of."""
    rows = list(rows)
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
    return sha256_rows({k: v for k, v in row.items() if k not in CHANGING} for row in rows)


def failures(rows: Iterable[Row]) -> dict[str, int]:
    """Cause -> calls without a verdict: timeout, busy, server, garbage, unreadable, ..."""
    return dict(sorted(Counter(row["error"].partition(":")[0] for row in rows if row["error"]).items()))


def _ask(calls: Sequence[Call], how: Asking, known: dict[str, Row]) -> bool:
    """Adds the rows of the calls to those that are known. False when it was stopped."""
    silent = done = 0
    with ThreadPoolExecutor(how.calls_at_once) as pool, _appending(how.path) as write:
        waiting = {pool.submit(ask, how.speaker, call.form, call.fields): call for call in calls}
        try:
            for finished in as_completed(waiting):
                row = row_of(waiting[finished], finished.result())
                write(row)
                known[row["key"]] = row
                done, silent = done + 1, silent + (row["error"] not in ("", UNREADABLE))
                how.tick(done, len(calls))
                if silent == done == GIVE_UP_CALLS:
                    return True
                if how.stopped() and done < len(calls):
                    return False
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return True


@contextmanager
def _appending(path: Path) -> Iterator[Callable[[Row], None]]:
    """Each row is with the operating system before the next is asked: SIGKILL loses none, a crash of the machine a few."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row, sort_keys=True) + "\n")
            file.flush()

        yield write


def _rewrite(path: Path, rows: Iterable[Row]) -> None:
    """Only whole rows with a reply stay, so that the next one begins on a line of its own."""
    if path.is_file():
        write_atomic(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def _rows(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
