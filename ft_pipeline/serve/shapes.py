"""How answers look in OpenAI's API: whole, in chunks, with usage; and how errors look."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ft_pipeline.serve.engine import Piece, Served, TokenLogprob

DONE = "data: [DONE]\n\n"


class ChatShape:
    """How an answer looks at /v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, served: Served) -> None:
        made_by = served.adapter_digest or served.base_digest
        self.frame = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            # of the weights that answered: a name may mean other weights a second later
            "system_fingerprint": f"fp_{made_by[:12]}",
        }

    def opening(self) -> dict[str, Any] | None:
        """The first chunk, before any text."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, piece: Piece) -> dict[str, Any]:
        """One chunk."""
        return self._chunk({"content": piece.text} if piece.text else {}, piece.finish, logprobs(piece))

    def full(self, text: str, last: Piece) -> dict[str, Any]:
        """The whole answer: its text, and the last piece with everything that was counted and noted."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish, "logprobs": logprobs(last)}
        return {**self.frame, "object": self.whole, "choices": [choice], "usage": usage(last)}

    def counts(self, last: Piece) -> dict[str, Any]:
        """The chunk that `include_usage` asks for."""
        return {**self.frame, "object": self.chunk, "choices": [], "usage": usage(last)}

    def _chunk(self, delta: dict[str, Any], finish: str | None, noted: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": noted}
        return {**self.frame, "object": self.chunk, "choices": [choice]}


class TextShape(ChatShape):
    """How an answer looks at /v1/completions."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def opening(self) -> None:
        """Nothing comes before the text."""

    def piece(self, piece: Piece) -> dict[str, Any]:
        """One chunk."""
        return {**self.frame, "object": self.chunk, "choices": [self._choice(piece.text, piece.finish)]}

    def full(self, text: str, last: Piece) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(text, last.finish)]
        return {**self.frame, "object": self.whole, "choices": choices, "usage": usage(last)}

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}


def events(pieces: Iterator[Piece], shape: ChatShape, *, with_usage: bool) -> Iterator[str]:
    """Server-sent events of an answer. With usage, every chunk has the field, null before the last (OpenAI's rule)."""
    last, extra = Piece(text=""), {"usage": None} if with_usage else {}
    if opening := shape.opening():
        yield event({**opening, **extra})
    for last in pieces:
        yield event({**shape.piece(last), **extra})
    if with_usage:
        yield event(shape.counts(last))
    yield DONE


def event(chunk: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(chunk)}\n\n"


def logprobs(piece: Piece) -> dict[str, Any] | None:
    """OpenAI's shape of what was noted for the tokens of a piece; null when nothing was."""
    rows = [{**_token(t), "top_logprobs": [_token(other) for other in t.top]} for t in piece.logprobs]
    return {"content": rows, "refusal": None} if rows else None


def _token(noted: TokenLogprob) -> dict[str, Any]:
    """`bytes` is null for a part of a character, whose bytes the text no longer says."""
    whole = "\ufffd" not in noted.token
    return {"token": noted.token, "logprob": noted.logprob, "bytes": list(noted.token.encode()) if whole else None}


def usage(last: Piece) -> dict[str, int]:
    """Token counts of an answer."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_body(served: Served, name: str) -> dict[str, Any]:
    """A row of /v1/models, with what stands behind the name under `platform`."""
    platform = {
        "version": served.id,
        "stage": served.stage,
        "base": served.base_digest,
        "adapter": served.adapter_digest,
    }
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": served.owned_by,
        "platform": platform,
    }
