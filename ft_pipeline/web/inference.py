"""Chat and completions for the platform's tenants, at the same base_url as their files and jobs: by this machine's server, or by the fleet."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
from anyio import CancelScope, to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ft_pipeline.serve.fleet.inventory import read_inventory
from ft_pipeline.serve.gateway.app import build_gateway
from ft_pipeline.serve.gateway.authority import Caller as Asking
from ft_pipeline.serve.gateway.authority import Refused, unavailable
from ft_pipeline.serve.gateway.front import GatewayLimits
from ft_pipeline.serve.gateway.main import open_client
from ft_pipeline.serve.gateway.replicas import Replicas
from ft_pipeline.serve.gateway.reply import unless_gone
from ft_pipeline.serve.gateway.targets import Names
from ft_pipeline.serve.schema import ChatBody, CompletionBody, Sampling
from ft_pipeline.serve.shapes import DONE, error_body, event
from ft_pipeline.store.platform.open import Records
from ft_pipeline.web.auth import Asker, Door
from ft_pipeline.web.local_server import LocalServer
from ft_pipeline.web.platform import Platform
from ft_pipeline.web.refusals import TooMany, Unauthenticated

PATHS = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class KeyAuthority:
    """The gateway's Authority: the platform's keys with the role infer, at the rate of their tenant."""

    door: Door

    def caller(self, bearer_key: str, *, address: str) -> Asking | None:
        """The owner of a key, None for one that is not good. Raises Refused (429) for its tenant and for an address that guesses."""
        try:
            found = self.door.caller(bearer_key, address=address)
        except Unauthenticated:
            return None
        except TooMany as error:
            wait = int(error.headers["Retry-After"])
            raise Refused(429, error.what, kind=error.kind, code=error.code, retry_after_seconds=wait) from None
        return Asking(tenant=found.tenant, may_infer="infer" in found.roles)


@dataclass(frozen=True)
class UsageMeter:
    """The gateway's Meter: a row of usage for each tenant, version and day."""

    records: Records

    def add(self, tenant: str, version: str, *, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """Counts one answer."""
        self.records.add_usage(
            tenant, version, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, seconds=seconds
        )


def add_inference(app: FastAPI, platform: Platform, *, with_server: bool) -> Any:
    """Adds the two routes and gives the context that must be open while they answer.

    With FT_FLEET the gateway answers, in this process. Else the server of this machine does (FT_SERVE_PORT); `with_server` starts one
    when the first question comes and none is there.
    """
    if platform.settings.fleet is not None:
        gateway = fleet_gateway(platform, app.state.door)
        app.router.routes.extend(Route(path, endpoint=gateway, methods=["POST"]) for path in PATHS)
        return lambda: gateway.router.lifespan_context(gateway)
    server = LocalServer(platform.settings, may_start=with_server)
    proxy = Proxy(server, names=Names(platform.catalog), meter=UsageMeter(platform.records))
    app.include_router(_router(proxy))
    return server.life


def fleet_gateway(platform: Platform, door: Door) -> FastAPI:
    """The gateway in front of the vLLM fleet, with the platform's keys and its usage table."""
    settings, limits = platform.settings, GatewayLimits()
    replicas = Replicas(read_inventory(settings.fleet), open_client(limits), file=settings.fleet)
    return build_gateway(
        Names(platform.catalog), replicas, KeyAuthority(door), meter=UsageMeter(platform.records), limits=limits,
        metrics_key=settings.metrics_key,
    )  # fmt: skip


def _router(proxy: Proxy) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["inference"])
    shown: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "As OpenAI's; with `stream: true` server-sent events",
            "content": {"text/event-stream": {}},
        }
    }

    @routes.post("/chat/completions", response_model=dict[str, Any], responses=shown)
    async def chat(request: Request, body: ChatBody, caller: Asker) -> Response:
        return await unless_gone(request, proxy.answer(PATHS[0], body, caller.tenant))

    @routes.post("/completions", response_model=dict[str, Any], responses=shown)
    async def completions(request: Request, body: CompletionBody, caller: Asker) -> Response:
        return await unless_gone(request, proxy.answer(PATHS[1], body, caller.tenant))

    return routes


@dataclass
class Used:
    """What an answer has used so far. While no counts came, a piece is counted as a token."""

    tenant: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    began: float = field(default_factory=time.monotonic)

    def note(self, usage: Any) -> None:
        """The server's counts."""
        if isinstance(usage, dict):
            self.prompt_tokens, self.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]


@dataclass(frozen=True)
class Proxy:
    """Questions on their way to the server of this machine, which knows no keys: what a name means is decided here, by tenant."""

    server: LocalServer
    names: Names
    meter: UsageMeter

    async def answer(self, path: str, body: Sampling, tenant: str) -> Response:
        """The server's answer, whole or as events. Raises Refused: 404 for a model that is not the tenant's, 503 without a server."""
        served = await to_thread.run_sync(self.names.known, body.model, Asking(tenant=tenant))
        used = Used(tenant, served.id)
        sent = body.model_dump(mode="json", exclude_unset=True)
        if body.stream:  # counts come only when they are asked for; who did not ask is not shown them
            sent["stream_options"] = {"include_usage": True}
        async with AsyncExitStack() as stack:
            answer = await self._opened(path, sent, stack)
            headers = {"X-FT-Model": served.id}
            if answer.status_code != 200:
                return _passed_on(answer, await answer.aread())
            if body.stream:
                with_usage = bool(body.stream_options and body.stream_options.include_usage)
                events = self._events(answer, used, with_usage=with_usage, stack=stack.pop_all())
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            said = json.loads(await answer.aread())
        used.note(said["usage"])
        await self._count(used)
        return JSONResponse(said, headers=headers)

    async def _opened(self, path: str, sent: dict[str, Any], stack: AsyncExitStack) -> httpx.Response:
        url = await self.server.url()
        try:
            return await stack.enter_async_context(self.server.client.stream("POST", f"{url}{path}", json=sent))
        except httpx.ConnectError:
            await self.server.lost()
            raise unavailable(
                f"no server answers at {url}: `ft-pipeline serve` starts one, and `serve-api --with-server` does so by itself",
                "no_server",
            ) from None
        except httpx.TransportError as error:
            raise unavailable(f"the server did not answer: {type(error).__name__}", "server_lost") from None

    async def _events(
        self, answer: httpx.Response, used: Used, *, with_usage: bool, stack: AsyncExitStack
    ) -> AsyncIterator[str]:
        """The events; counted once, however they end. A client that leaves ends the work at the server."""
        async with stack:
            try:
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and (text := _shown(line[6:], used, with_usage=with_usage)):
                        yield text
            except httpx.TransportError as error:
                text = f"the answer broke off ({type(error).__name__}); what came is incomplete, ask again"
                yield event(error_body(text, kind="server_error", code="server_lost"))
            finally:
                await self._count(used)

    async def _count(self, used: Used) -> None:
        """A row in the database, in a thread; not left out when the client has gone."""
        seconds = time.monotonic() - used.began

        def add() -> None:
            self.meter.add(
                used.tenant, used.model, prompt_tokens=used.prompt_tokens,
                completion_tokens=used.completion_tokens, seconds=seconds,
            )  # fmt: skip

        with CancelScope(shield=True):
            await to_thread.run_sync(add)


def _shown(data: str, used: Used, *, with_usage: bool) -> str | None:
    """An event for the client, None for counts that it did not ask for."""
    if data == "[DONE]":
        return DONE
    chunk = json.loads(data)
    if (usage := chunk.get("usage")) is not None:
        used.note(usage)
        return event(chunk) if with_usage else None
    if chunk.get("choices"):
        used.completion_tokens += 1
    return event(chunk)


def _passed_on(answer: httpx.Response, body: bytes) -> Response:
    kept = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
    return Response(body, answer.status_code, media_type="application/json", headers=kept)
