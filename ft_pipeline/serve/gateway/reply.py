"""One answer on its way to the client: whole or in events, counted once, ended at the replica when the client is gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ft_pipeline.serve.gateway.authority import Refused
from ft_pipeline.serve.gateway.counts import Counts
from ft_pipeline.serve.gateway.events import Counted, frame, relayed
from ft_pipeline.serve.gateway.front import Front
from ft_pipeline.serve.gateway.replicas import Replicas
from ft_pipeline.serve.gateway.requests import Routed
from ft_pipeline.serve.gateway.targets import Names
from ft_pipeline.serve.gateway.upstream import Opened, opened

T = TypeVar("T")
CLIENT_GONE = 499
"""nginx's status for it; nobody sees it but the counters."""


@dataclass(frozen=True)
class Gateway:
    """Everything a route needs."""

    names: Names
    replicas: Replicas
    front: Front
    counts: Counts


class Reply:
    """The answer to a routed request."""

    def __init__(self, gateway: Gateway, routed: Routed) -> None:
        self.gateway, self.routed, self.counted = gateway, routed, Counted()
        self._started = time.monotonic()
        self._deadline = self._started + gateway.front.limits.total_seconds

    async def opened(self) -> Opened:
        """The first byte. Raises Refused."""
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await opened(self.routed, self.gateway.replicas, self.gateway.counts.retried)
        except TimeoutError:
            raise Refused(504, "the answer took too long", kind="server_error", code="timeout") from None

    async def whole(self) -> Response:
        """A JSON answer."""
        opening = await self.opened()
        async with opening.stack:
            body = json.loads(await opening.whole())
        self.counted.first_at = time.monotonic()
        self.counted.note(body.get("usage"))
        self.counted.outcome = (body.get("choices") or [{}])[0].get("finish_reason") or "error"
        self.count()
        headers = {"X-FT-Model": self.routed.target.label}
        return JSONResponse(frame(body, self.routed.target), headers=headers)

    def events(self, opening: Opened) -> AsyncIterator[str]:
        """The events. Read from the replica as fast as the client takes them: a slow reader slows its own answer."""
        return relayed(opening.chunks, self.routed, counted=self.counted, deadline=self._deadline)

    def count(self) -> None:
        """Once, at the end."""
        self.gateway.counts.answered(self.routed, self.counted, started=self._started)


class Streamed(StreamingResponse):
    """Gives back what it holds however it ends, also when the client is gone before the first event."""

    def __init__(self, reply: Reply, opening: Opened, holds: AsyncExitStack) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-FT-Model": reply.routed.target.label}
        super().__init__(reply.events(opening), media_type="text/event-stream", headers=headers)
        self._reply, self._holds = reply, holds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.count()
            with anyio.CancelScope(shield=True):
                await self._holds.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result; when the client leaves first, the work is cancelled, and with it the request at the replica."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Refused(CLIENT_GONE, "the client is gone")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Ends when the client does."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
