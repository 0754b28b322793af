"""Two answers to each of many prompts: the calls that compare them in both orders, the controls of the judge, and what came of it.

Controls: the same answer twice must not win by its place, and an answer that was spoilt on purpose must lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ft_pipeline.judging.forms import FIRST, TIE, pair_form
from ft_pipeline.judging.judge import Opinion, PairRequest
from ft_pipeline.judging.transcripts import Call, Row, row_of
from ft_pipeline.store.fingerprint import sha256_bytes

COMPARED = PAIR, IDENTICAL, SPOILT = "pair", "identical", "spoilt"
BASELINE_FIRST, CHALLENGER_FIRST = "baseline_first", "challenger_first"
IDENTICAL_PROMPTS = 100
"""Of the control with equal answers: one call each."""
SPOILT_PROMPTS = 50
"""Of the control with spoilt answers: two calls each."""
SAME_TEXT = "same text"
"""Two equal answers are a tie without a call: a judge could only show its bias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duel:
    """Two answers to one prompt."""

    id: str
    prompt: str
    baseline: str
    challenger: str
    reference: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a judge said of a duel: 1 where the challenger won, 0 where the baseline did, .5 for a tie, None for no verdict."""

    id: str
    baseline_first: float | None
    challenger_first: float | None
    characters: tuple[int, int]
    """Length of the baseline's and the challenger's answer."""
    same_text: bool = False

    @property
    def score(self) -> float | None:
        """Mean of both orders; None unless both were judged."""
        if self.baseline_first is None or self.challenger_first is None:
            return None
        return (self.baseline_first + self.challenger_first) / 2

    @property
    def is_consistent(self) -> bool:
        """The same winner in both orders."""
        return self.baseline_first is not None and self.baseline_first == self.challenger_first


def duel_calls(duels: Iterable[Duel], kind: str = PAIR) -> list[Call]:
    """Both orders of every duel whose answers differ."""
    return [
        _call(duel, kind, order)
        for duel in duels
        if duel.baseline != duel.challenger
        for order in (BASELINE_FIRST, CHALLENGER_FIRST)
    ]


def same_text_rows(duels: Iterable[Duel]) -> list[Row]:
    """The ties of those whose answers do not differ, as rows of the transcript."""
    tie = Opinion(label=TIE, parsed_by=SAME_TEXT)
    same = [duel for duel in duels if duel.baseline == duel.challenger]
    return [{**row_of(_call(d, PAIR, o), tie), "request": []} for d in same for o in (BASELINE_FIRST, CHALLENGER_FIRST)]


def control_calls(duels: Sequence[Duel]) -> list[Call]:
    """The controls, on prompts chosen by the digest of their ids. The intact answer is the reference, or the baseline's without one."""
    chosen = by_digest(duels, max(IDENTICAL_PROMPTS, SPOILT_PROMPTS))
    intact = [replace(d, baseline=d.reference or d.baseline, challenger=d.reference or d.baseline) for d in chosen]
    twice = [_call(duel, IDENTICAL, BASELINE_FIRST) for duel in intact[:IDENTICAL_PROMPTS]]
    worse = [replace(d, challenger=spoilt(intact, i)) for i, d in enumerate(intact[:SPOILT_PROMPTS])]
    return twice + duel_calls(worse, SPOILT)


def by_digest(duels: Sequence[Duel], most: int) -> list[Duel]:
    """At most so many, in an order that depends on ids alone."""
    return sorted(duels, key=lambda d: sha256_bytes(d.id.encode()))[:most]


def spoilt(duels: Sequence[Duel], index: int) -> str:
    """An answer to another question with its words in reverse; to the same one, letter by letter, when all answers are alike."""
    own = duels[index].baseline
    for step in range(1, len(duels)):
        other = duels[(index + step) % len(duels)].baseline
        if other.strip() and other != own:
            return " ".join(reversed(other.split()))
    return own[::-1]


def outcomes(rows: Iterable[Row], kind: str = PAIR) -> list[Outcome]:
    """The duels of a transcript, in its order."""
    grouped: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == kind:
            grouped.setdefault(row["item"], {})[row["order"]] = row
    return [_outcome(item, orders) for item, orders in grouped.items()]


def first_place_rate(rows: Iterable[Row]) -> tuple[float, int]:
    """How often the answer that is shown first wins among the control's equal answers, ties half; and among how many.

    Both orders of two equal texts are one and the same call, so their mean is .5 whatever the judge does: the place itself is counted.
    """
    said = [1.0 if row["verdict"] == FIRST else 0.5 if row["verdict"] == TIE else 0.0 for row in rows if row["kind"] == IDENTICAL and row["verdict"]]  # fmt: skip
    return (sum(said) / len(said) if said else float("nan")), len(said)


def _call(duel: Duel, kind: str, order: str) -> Call:
    shown = (duel.baseline, duel.challenger) if order == BASELINE_FIRST else (duel.challenger, duel.baseline)
    request = PairRequest(prompt=duel.prompt, first=shown[0], second=shown[1], reference=duel.reference)
    facts = {"baseline_characters": len(duel.baseline), "challenger_characters": len(duel.challenger)}
    return Call(
        kind=kind, item=duel.id, order=order, form=pair_form(duel.reference), fields=request.fields, facts=facts
    )


def _outcome(item: str, orders: dict[str, Any]) -> Outcome:
    one = next(iter(orders.values()))
    return Outcome(
        id=item, baseline_first=_challenger(orders.get(BASELINE_FIRST)), challenger_first=_challenger(orders.get(CHALLENGER_FIRST)),
        characters=(one["baseline_characters"], one["challenger_characters"]), same_text=one["parsed_by"] == SAME_TEXT,
    )  # fmt: skip


def _challenger(row: Row | None) -> float | None:
    """The challenger's points in one order."""
    if row is None or row["verdict"] is None:
        return None
    if row["verdict"] == TIE:
        return 0.5
    return float((row["verdict"] == FIRST) == (row["order"] == CHALLENGER_FIRST))
