"""In front of the API: bodies that are too large, and requests beyond what may wait, are refused before a thread is spent on them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ft_pipeline.serve.limits import Limits
from ft_pipeline.serve.shapes import error_body


class Intake:
    """ASGI middleware. `refused` hears the status of each refusal."""

    def __init__(self, app: ASGIApp, *, limits: Limits, refused: Callable[[int], None]) -> None:
        self._app, self._limits, self._refused = app, limits, refused
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers 413 or 429."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if self._in_flight >= self._limits.max_in_flight:
            return await self._refuse(429, scope, receive, send)
        self._in_flight += 1
        try:
            body = await _read(scope, receive, self._limits.max_body_bytes)
            if body is None:
                return await self._refuse(413, scope, receive, send)
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._in_flight -= 1

    async def _refuse(self, status: int, *asgi: Scope | Receive | Send) -> None:
        self._refused(status)
        if status == 413:
            text = f"the body is larger than {self._limits.max_body_bytes:,} bytes; shorten the messages"
            body, headers = error_body(text, kind="invalid_request_error", code="body_too_large"), {}
        else:
            seconds = self._limits.retry_after_seconds
            text = f"{self._in_flight} requests wait already; ask again in {seconds} s"
            body, headers = error_body(text, kind="rate_limit_error", code="queue_full"), {"Retry-After": str(seconds)}
        await JSONResponse(body, status_code=status, headers=headers)(*asgi)  # type: ignore[arg-type]


async def _read(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The whole body; None when it is too large, said in its header or found while it came."""
    said = dict(scope["headers"]).get(b"content-length", b"0")
    if said.isdigit() and int(said) > most:
        return None
    body = b""
    while len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body if len(body) <= most else None
    return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever else comes: that the client went away."""
    first = [body]

    async def replay() -> Message:
        if first:
            return {"type": "http.request", "body": first.pop(), "more_body": False}
        return await receive()

    return replay
