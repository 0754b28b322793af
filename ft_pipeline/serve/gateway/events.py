"""Rewrites vLLM's server-sent events on their way: the name that was asked for, usage only for those who asked, an end that is an end."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from ft_pipeline.serve.gateway.requests import Routed
from ft_pipeline.serve.gateway.targets import Target
from ft_pipeline.serve.shapes import DONE, error_body, event


@dataclass(slots=True)
class Counted:
    """What an answer used so far, and how it ended: stop, length, error, left."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcome: str = "left"
    first_at: float | None = None
    """Monotonic seconds of the first byte."""

    def note(self, usage: Any) -> None:
        """vLLM's counts up to here."""
        if isinstance(usage, dict):
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.completion_tokens = usage.get("completion_tokens") or 0


def frame(body: dict[str, Any], target: Target) -> dict[str, Any]:
    """An answer under the name that was asked for, with the weights that gave it, as the embedded server does it."""
    return {**body, "model": target.asked, "system_fingerprint": f"fp_{target.weights[:12]}"}


async def relayed(
    chunks: AsyncIterator[bytes], routed: Routed, *, counted: Counted, deadline: float
) -> AsyncIterator[str]:
    """The events for the client. A replica that dies is an error event and no [DONE]: the status is gone, and never a retry."""
    done = False
    try:
        async for data in _events(chunks):
            counted.first_at = counted.first_at or time.monotonic()
            if data == "[DONE]":
                done = True
                break
            for text in _rewritten(json.loads(data), routed, counted):
                yield text
            if time.monotonic() > deadline:
                raise TimeoutError("the answer took too long")
    except (httpx.HTTPError, TimeoutError, ValueError) as error:
        counted.outcome = "error"
        yield _broken(f"{type(error).__name__}: {error}")
        return
    if done:
        yield DONE
    else:
        counted.outcome = "error"
        yield _broken("it closed the connection")


def _rewritten(chunk: dict[str, Any], routed: Routed, counted: Counted) -> list[str]:
    """One chunk; none for counts that nobody asked for."""
    if "error" in chunk:
        counted.outcome = "error"
        return [event(error_body(str(chunk["error"].get("message", "")), kind="server_error"))]
    usage = chunk.pop("usage", None)
    counted.note(usage)
    choices, with_usage = chunk.get("choices") or [], routed.asked.with_usage
    for choice in choices:
        counted.outcome = choice.get("finish_reason") or counted.outcome
    if choices:
        return [event(frame({**chunk, "usage": None} if with_usage else chunk, routed.target))]
    return [event(frame({**chunk, "usage": usage}, routed.target))] if with_usage else []


def _broken(why: str) -> str:
    text = f"the answer broke off: the replica that gave it is gone ({why}). What came is incomplete; ask again."
    return event(error_body(text, kind="server_error", code="replica_lost"))


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each event. Chunks of TCP end anywhere, also inside a character."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        for block in whole:
            if block.startswith(b"data: "):
                yield block[6:].decode("utf-8", "replace").strip()
