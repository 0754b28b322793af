"""What a judge is: two answers to one prompt go in, the better one comes out; or none, with the reason.

Whoever can fill in a form (a server, a model of the store, a function, a transcript) is a `Speaker`; `PairJudge` asks it about pairs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ft_pipeline.judging.forms import Form, pair_form

UNREADABLE = "unreadable"
"""The error of a reply without a verdict: the judge did answer, so it is not asked again."""


class NoReply(Exception):
    """A speaker gave no reply. `cause` is one word: timeout, busy, server, refused, garbage, connection."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a speaker said."""

    text: str
    usage: Mapping[str, int] = field(default_factory=dict)
    """Tokens, where the speaker counts them."""
    attempts: int = 1


class Speaker(Protocol):
    """Fills in forms. Safe to call from several threads."""

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """The reply to a filled form. Raises NoReply."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinion:
    """The reading of one reply."""

    label: str | None
    """One of the form's labels; None when nobody answered or the reply holds none."""
    raw: str = ""
    parsed_by: str = ""
    error: str = ""
    """Empty, `unreadable`, or the cause of a NoReply and its detail."""
    latency_seconds: float = 0.0
    usage: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 1


def ask(speaker: Speaker, form: Form, fields: Mapping[str, str]) -> Opinion:
    """One opinion. Never raises for a silent or confused speaker: its failure is a value that is counted."""
    started = time.monotonic()
    try:
        reply = speaker.say(form, fields)
    except NoReply as failure:
        return Opinion(label=None, error=str(failure), latency_seconds=_since(started))
    label, parsed_by = form.read(reply.text)
    return Opinion(
        label=label, raw=reply.text, parsed_by=parsed_by, error="" if label else UNREADABLE, latency_seconds=_since(started),
        usage=reply.usage, attempts=reply.attempts,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRequest:
    """Two answers to one prompt, in the order in which they are shown."""

    prompt: str
    first: str
    second: str
    reference: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """By the names of the form."""
        return {"prompt": self.prompt, "first": self.first, "second": self.second, "reference": self.reference}


@dataclass(frozen=True, kw_only=True, slots=True)
class PairVerdict:
    """Who won, and on what that rests."""

    winner: str | None
    """forms.FIRST, SECOND or TIE; None when there is no verdict."""
    raw: str
    parsed_by: str
    latency_seconds: float
    usage: Mapping[str, int]
    error: str = ""


class Judge(Protocol):
    """Compares two answers."""

    def judge(self, request: PairRequest) -> PairVerdict:
        """The verdict on a pair as it is shown; the caller asks again with the order exchanged."""
        ...


@dataclass(frozen=True)
class PairJudge:
    """A judge made of anybody who can fill in a form."""

    speaker: Speaker

    def judge(self, request: PairRequest) -> PairVerdict:
        """As Judge."""
        found = ask(self.speaker, pair_form(request.reference), request.fields)
        return PairVerdict(
            winner=found.label, raw=found.raw, parsed_by=found.parsed_by, latency_seconds=found.latency_seconds, usage=found.usage,
            error=found.error,
        )  # fmt: skip


def _since(started: float) -> float:
    return round(time.monotonic() - started, 4)
