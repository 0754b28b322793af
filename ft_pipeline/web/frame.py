"""Around every request: an id, a place, headers, one line in the access log, and a body of bounded size that comes in time."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ft_pipeline.serve.shapes import error_body
from ft_pipeline.store.catalog_database import now

access = logging.getLogger("ft_pipeline.access")
failures = logging.getLogger("ft_pipeline.web")
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
STREAMED = re.compile(r"/v1/files|/v1/uploads/[^/]*/parts")
"""Paths whose bodies stream to the store: web/intake.py bounds and times them itself."""
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Unless a route says otherwise. HSTS is the ingress's, where TLS ends."""
CLIENT_GONE = 499
"""nginx's status for it, in the log only."""
LATER = {"Retry-After": "1"}
CLOSE = {"Connection": "close"}
"""What of the body has not come is not read."""
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of what is no HTML: a browser that is made to show it as a page runs nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameLimits:
    """Habits of one API process."""

    max_in_flight: int = 512
    """Requests at once, streams included; the next is told to come back (503)."""
    max_body_bytes: int = 4 * 2**20
    """Of a body that is read as a whole: a job, a chat."""
    body_seconds: float = 30.0
    """For such a body to come: a slow one holds a place."""
    held_bytes: int = 256 * 2**20
    """Of all bodies at once: they come before anybody knows whose they are."""


class Frame:
    """ASGI middleware. What fails without an answer is logged with its id, answered with 500 and raised on."""

    def __init__(self, app: ASGIApp, *, limits: FrameLimits | None = None) -> None:
        self._app, self._limits = app, limits or FrameLimits()
        self._in_flight = self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        note = _Note(scope)
        self._in_flight += 1
        try:
            app, receives = await self._admitted(note, receive)
            await app(scope, receives, note.noting(send))
        except ClientDisconnect:
            note.status = note.status or CLIENT_GONE
        except Exception:
            failures.exception("%s %s failed; request %s", scope["method"], scope["path"], note.request_id)
            if note.status is None:
                text = f"the server failed; whoever runs it finds request {note.request_id} in its log"
                await _say(500, text, "internal")(scope, receive, note.noting(send))
            raise
        finally:
            self._in_flight -= 1
            self._held_bytes -= note.held_bytes
            access.info(note.line())

    async def _admitted(self, note: _Note, receive: Receive) -> tuple[ASGIApp, Receive]:
        """Who answers, the application or a refusal, and where it gets the body from. Raises ClientDisconnect."""
        limits = self._limits
        if self._in_flight > limits.max_in_flight or self._held_bytes > limits.held_bytes:
            return _say(503, "too many requests run already; ask again in 1 s", "busy", headers=LATER), receive
        if STREAMED.fullmatch(note.scope["path"]):
            return self._app, receive
        try:
            body = await asyncio.wait_for(self._read(note, receive), limits.body_seconds)
        except TimeoutError:
            text = f"the body did not come within {limits.body_seconds:g} s"
            return _say(408, text, "slow_body", headers=CLOSE), receive
        if body is None:
            text = f"the body is larger than {limits.max_body_bytes:,} bytes; data goes to /v1/files or /v1/uploads"
            return _say(413, text, "body_too_large", headers=CLOSE), receive
        return self._app, _replayed(body, receive)

    async def _read(self, note: _Note, receive: Receive) -> bytes | None:
        """The whole body; None when it is too large, said in its header or found while it came."""
        most, said = self._limits.max_body_bytes, dict(note.scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > most:
            return None
        body = bytearray()
        while len(body) <= most:
            message = await receive()
            if message["type"] == "http.disconnect":  # half a body must not look like a whole one
                raise ClientDisconnect
            piece = message.get("body", b"")
            body += piece
            note.held_bytes += len(piece)
            self._held_bytes += len(piece)
            if not message.get("more_body", False):
                return bytes(body) if len(body) <= most else None
        return None


class _Note:
    """What is remembered of a request for its headers and its line in the log: no query, no header, no body, no key."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.began = scope, time.monotonic()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if GIVEN_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        self.status: int | None = None
        self.sent_bytes = self.held_bytes = 0
        self.state: MutableMapping[str, Any] = scope.setdefault("state", {})
        self.state["request_id"] = self.request_id

    def noting(self, send: Send) -> Send:
        """Sends with our headers."""

        async def sends(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self._add_headers(MutableHeaders(scope=message))
            self.sent_bytes += len(message.get("body", b""))
            await send(message)

        return sends

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["X-Request-Id"] = self.request_id
        headers["OpenAI-Processing-Ms"] = str(self._milliseconds())
        for name, value in ALWAYS.items():
            headers.setdefault(name, value)
        if not headers.get("content-type", "").startswith("text/html"):
            headers.setdefault("Content-Security-Policy", NO_PAGE)
        for name, value in self.state.get("rate_headers", {}).items():
            headers.setdefault(name, value)

    def _milliseconds(self) -> int:
        return round((time.monotonic() - self.began) * 1000)

    def line(self) -> str:
        """JSON, on one line."""
        caller, client = self.state.get("caller"), self.scope.get("client")
        return json.dumps(
            {
                "at": now(), "request_id": self.request_id, "method": self.scope["method"], "path": self.scope["path"],
                "status": self.status, "milliseconds": self._milliseconds(), "bytes": self.sent_bytes,
                "address": client[0] if client else None, "tenant": caller.tenant if caller else None,
                "key": caller.key if caller else None,
            }
        )  # fmt: skip


def _say(status: int, text: str, code: str, *, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(text, kind=kind, code=code), status, headers=headers)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever else comes: that the client went away."""
    first = [body]

    async def replay() -> Message:
        if first:
            return {"type": "http.request", "body": first.pop(), "more_body": False}
        return await receive()

    return replay
