"""Before a request is a request: allowed paths exactly as written, a key, a place, a body of bounded size that comes in time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import unquote

from anyio import to_thread
from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ft_pipeline.serve.gateway.authority import Authority, Caller, Refused
from ft_pipeline.serve.gateway.last_good import LastGood
from ft_pipeline.serve.shapes import error_body

ALLOWED = {
    b"/v1/chat/completions": "POST",
    b"/v1/completions": "POST",
    b"/v1/models": "GET",
    b"/health": "GET",
    b"/metrics": "GET",
}
MODEL = b"/v1/models/"
"""One path has more to come: a model's name, with `/` or `%2F` (clients differ). What it is must look like one (targets.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayLimits:
    """Habits. They change no answer, only who waits and who is told to come back."""

    max_in_flight: int = 1024
    max_per_tenant: int = 256
    """One tenant cannot take every place."""
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    """For a body to come: a slow one holds a place."""
    silent_seconds: float = 300.0
    """Between two bytes of a replica, also before the first: a long queue, a long prompt."""
    total_seconds: float = 600.0
    drain_seconds: int = 120


class AllowList:
    """ASGI middleware: everything that is not on the list is 404, whatever it would decode to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compares the path as it was sent, before anybody decodes it."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        raw = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]
        if scope["type"] == "http" and self._method(raw) == scope["method"]:
            return await self._app(scope, receive, send)
        body = error_body("there is nothing here", kind="invalid_request_error", code="not_found")
        return await JSONResponse(body, status_code=404)(scope, receive, send)

    @staticmethod
    def _method(raw: bytes) -> str | None:
        if raw.startswith(MODEL):
            name = unquote(raw[len(MODEL) :].decode("latin-1"))
            return None if ".." in name or "\\" in name or "%" in name or name.startswith("/") else "GET"
        return ALLOWED.get(raw)


@dataclass
class Front:
    """Keys and places."""

    authority: Authority
    limits: GatewayLimits
    in_flight: Counter[str] = field(default_factory=Counter)
    last: LastGood[Caller | None] = field(default_factory=LastGood)

    async def caller(self, request: Request) -> Caller:
        """Who asks. Raises Refused: 401 without a good key, 403 with one that is for other things."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        found = None
        if scheme.lower() == "bearer" and 0 < len(key.strip()) <= 512:
            address = request.client.host if request.client else ""
            ask = partial(self.authority.caller, key.strip(), address=address)
            digest = hashlib.sha256(key.strip().encode()).hexdigest()
            found = await to_thread.run_sync(self.last.of, digest, ask)
        if found is None:
            raise Refused(
                401, "the API key is missing, unknown or revoked", kind="authentication_error", code="invalid_api_key"
            )
        if not found.may_infer:
            raise Refused(403, "this key may not ask models", kind="permission_error", code="insufficient_permissions")
        return found

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """Counts a request. Raises Refused (429) when the gateway or the tenant has no place left."""
        if self.in_flight.total() >= self.limits.max_in_flight:
            raise _full("the gateway is full")
        if self.in_flight[caller.tenant] >= self.limits.max_per_tenant:
            raise _full(f"{self.limits.max_per_tenant} requests of {caller.tenant} run already")
        self.in_flight[caller.tenant] += 1
        try:
            yield
        finally:
            self.in_flight[caller.tenant] -= 1

    async def body(self, request: Request) -> bytes:
        """The whole body. Raises Refused: 413, 408."""
        most, raw = self.limits.max_body_bytes, bytearray()
        said = request.headers.get("content-length", "0")
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                if not said.isdigit() or int(said) <= most:
                    async for chunk in request.stream():
                        raw += chunk
                        if len(raw) > most:
                            break
                    else:
                        return bytes(raw)
        except TimeoutError:
            raise Refused(
                408, f"the body did not come within {self.limits.body_seconds:g} s", code="slow_body"
            ) from None
        raise Refused(413, f"the body is larger than {most:,} bytes; shorten the messages", code="body_too_large")


def _full(what: str) -> Refused:
    return Refused(429, f"{what}; ask again in 1 s", kind="rate_limit_error", code="queue_full", retry_after_seconds=1)
