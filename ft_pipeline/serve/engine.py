"""What the HTTP side needs from whatever generates: names, requests, pieces of text. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ft_pipeline.errors import FtError, UserError

Finish = Literal["stop", "length"]
Prompt = str | tuple[Mapping[str, Any], ...]
"""A text to go on with, or chat messages for the model's own template."""


class BadRequest(UserError):
    """A request that cannot be answered as it is; `param` names the field, `code` is OpenAI's."""

    def __init__(self, what: str, *, param: str, code: str | None = None, why: str = "", cure: str = "") -> None:
        super().__init__(what, why=why, cure=cure)
        self.param, self.code = param, code


class Busy(FtError):
    """Too many requests wait: the client comes back after `retry_after_seconds`."""

    def __init__(self, waiting: int, *, retry_after_seconds: int) -> None:
        super().__init__(
            f"{waiting} requests wait already",
            why="One more would wait longer than clients do.",
            cure=f"ask again in {retry_after_seconds} s",
        )
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One thing that answers: a version of a model line, or a base model."""

    id: str
    """`tenant/model@3`, or the base's name."""
    aliases: tuple[str, ...]
    """Other names it answers to now, for example `tenant/model` and `tenant/model:production`."""
    stage: str
    """`base` for a base model."""
    base_digest: str
    adapter_digest: str | None
    created: int
    """Unix seconds."""
    owned_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One request. Temperature 0 is greedy; a seed makes sampling repeatable."""

    model: str
    prompt: Prompt
    max_tokens: int | None = None
    """None: up to what the context leaves, at most 512."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many of the likeliest tokens to name beside each chosen one; None: no probabilities at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token as text and the logarithm of its probability at temperature 1, before top_p."""

    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of an answer. The last one carries `finish` and the counts."""

    text: str
    finish: Finish | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    waited_seconds: float = 0.0
    """In the queue."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the piece before, when they were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Pieces, and what they come from: a name may mean another version a moment later."""

    served: Served
    pieces: Iterator[Piece]


class Engine(Protocol):
    """Generates text for names. Every method may be called from any thread."""

    def models(self) -> list[Served]:
        """What answers now."""
        ...

    def resolve(self, name: str) -> Served:
        """What a name stands for now. Raises NotFoundError with the nearest name."""
        ...

    def answer(self, request: Generation) -> Answer:
        """An answer in the making. Raises NotFoundError, BadRequest or Busy at the call, not while iterating.

        Closing the iterator of its pieces stops the generation.
        """
        ...

    def counters(self) -> dict[str, float]:
        """Numbers for `/metrics`: name -> value."""
        ...

    def trouble(self) -> str:
        """Why it cannot answer, empty when it can: what a health check must not hide."""
        ...
