"""Preference pairs out of a judge's opinions (RLAIF): candidates of a prompt are compared in both orders, what agrees becomes a pair.

What does not agree becomes a line of the ledger with its reason: no pair is dropped in silence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from ft_pipeline.errors import DataError
from ft_pipeline.judging.duels import Duel, Outcome, outcomes
from ft_pipeline.judging.transcripts import Row

Keep = Literal["best", "all"]
"""`best`: at most one pair of a prompt, its best candidate against its worst. `all`: every pair that is decided."""
INCONSISTENT, TIE, MISSING, SAME_TEXT, NOT_WIDEST = "inconsistent", "tie", "missing", "same text", "not the widest"
"""Why two candidates make no pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """A prompt and the answers that are to be compared."""

    id: str
    prompt: Any
    """Text, or messages, as the file gave it: the pair gets it unchanged."""
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt as a judge reads it."""
        return self.prompt if isinstance(self.prompt, str) else said(self.prompt)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a judge made of candidates."""

    pairs: list[dict[str, Any]]
    """`{prompt, chosen, rejected, judged_id, judge_margin}`."""
    ledger: list[dict[str, Any]]
    """`{id, first, second, reason}`: every comparison that is no pair."""
    compared: int
    consistent: int

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> comparisons."""
        return dict(sorted(Counter(line["reason"] for line in self.ledger).items()))


def said(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation as one text: a single user turn as it is, a longer one turn by turn."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n\n".join(f"{m['role']}: {m.get('content') or ''}" for m in messages)


def read_candidates(path: Path) -> list[Candidates]:
    """The rows `{prompt, candidates: [two or more texts]}` of a JSONL file, with an optional `id`. Raises DataError with the line."""
    lines = path.read_text(encoding="utf-8").split("\n")
    found = [_candidates(line, f"{path}:{n}", n) for n, line in enumerate(lines, 1) if line.strip()]
    ids = Counter(c.id for c in found)
    if twice := next((name for name, number in ids.items() if number > 1), None):
        raise DataError(
            f"{path}: id {twice!r} is used twice", why="Opinions are kept by id.", cure="give every row its own id"
        )
    if not found:
        raise DataError(f"{path} holds no row", cure="rows are {prompt, candidates: [text, text]}")
    return found


def duels_of(items: Iterable[Candidates]) -> list[Duel]:
    """Every two candidates of every prompt."""
    return [
        Duel(id=f"{item.id}/{i}-{j}", prompt=item.text, baseline=item.answers[i], challenger=item.answers[j])
        for item in items
        for i, j in combinations(range(len(item.answers)), 2)
    ]


def labelled(items: Sequence[Candidates], rows: Iterable[Row], *, keep: Keep) -> Labelled:
    """The pairs of a transcript, and the ledger of the rest."""
    found = {o.id: o for o in outcomes(rows)}
    pairs: list[dict[str, Any]] = []
    ledger: list[dict[str, Any]] = []
    for item in items:
        points = _points(item, found)
        decided = []
        for i, j in combinations(range(len(item.answers)), 2):
            outcome = found[f"{item.id}/{i}-{j}"]
            if reason := undecided(outcome):
                ledger.append({"id": item.id, "first": i, "second": j, "reason": reason})
            else:
                decided.append((j, i) if outcome.score == 1 else (i, j))
        kept = _best(decided, points) if keep == "best" else decided
        left = [pair for pair in decided if pair not in kept]
        ledger += [{"id": item.id, "first": min(pair), "second": max(pair), "reason": NOT_WIDEST} for pair in left]
        pairs += [_pair(item, pair, points) for pair in kept]
    judged = [o for o in found.values() if o.score is not None and not o.same_text]
    return Labelled(pairs=pairs, ledger=ledger, compared=len(judged), consistent=sum(o.is_consistent for o in judged))


def undecided(outcome: Outcome) -> str:
    """Why a comparison is no pair; empty when the same answer won in both orders."""
    if outcome.same_text:
        return SAME_TEXT
    if outcome.score is None:
        return MISSING
    if not outcome.is_consistent:
        return INCONSISTENT
    return TIE if outcome.score == 0.5 else ""


def _points(item: Candidates, found: dict[str, Outcome]) -> list[float]:
    """Mean score of each candidate against the others, in [0, 1]; what is missing counts half."""
    points = [0.0] * len(item.answers)
    for i, j in combinations(range(len(item.answers)), 2):
        score = found[f"{item.id}/{i}-{j}"].score
        points[j] += 0.5 if score is None else score
        points[i] += 0.5 if score is None else 1 - score
    return [p / (len(item.answers) - 1) for p in points]


def _best(decided: Sequence[tuple[int, int]], points: Sequence[float]) -> list[tuple[int, int]]:
    """The decided pair that lies farthest apart; the first of equals."""
    return sorted(decided, key=lambda pair: points[pair[1]] - points[pair[0]])[:1]


def _pair(item: Candidates, pair: tuple[int, int], points: Sequence[float]) -> dict[str, Any]:
    won, lost = pair
    return {
        "prompt": item.prompt, "chosen": item.answers[won], "rejected": item.answers[lost], "judged_id": item.id,
        "judge_margin": round(points[won] - points[lost], 6),
    }  # fmt: skip


def _candidates(line: str, place: str, number: int) -> Candidates:
    try:
        row = json.loads(line)
        fault = next(_faults(row), "")
    except ValueError as error:
        fault, row = f"not JSON: {error}", {}
    if fault:
        raise DataError(
            f"{place}: {fault}",
            why="Pairs are trained on, so no row is guessed.",
            cure="rows are {prompt, candidates: [text, text]}",
        )
    return Candidates(id=str(row.get("id", number)), prompt=row["prompt"], answers=tuple(row["candidates"]))


def _faults(row: Any) -> Iterator[str]:
    if not isinstance(row, dict) or "prompt" not in row or "candidates" not in row:
        yield "the row lacks prompt or candidates"
        return
    prompt, answers = row["prompt"], row["candidates"]
    turns = (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in prompt)
    )
    if not turns and not (isinstance(prompt, str) and prompt.strip()):
        yield f"prompt must be text or messages, not {str(prompt)[:60]!r}"
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, str) and a.strip() for a in answers):
        yield f"candidates must be two or more non-empty texts, not {str(answers)[:60]!r}"
