"""The gateway's HTTP API: OpenAI's inference routes in front of the vLLM fleet, and nothing else."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress

import httpx
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ft_pipeline.errors import FtError, StorageError
from ft_pipeline.serve.gateway.authority import Authority, Meter, Refused, unavailable
from ft_pipeline.serve.gateway.counts import Counts
from ft_pipeline.serve.gateway.front import AllowList, Front, GatewayLimits
from ft_pipeline.serve.gateway.replicas import Replicas
from ft_pipeline.serve.gateway.reply import Gateway, Reply, Streamed, unless_gone
from ft_pipeline.serve.gateway.requests import Routed, read
from ft_pipeline.serve.gateway.targets import Names
from ft_pipeline.serve.shapes import error_body, model_body

THREADS = 64
"""For keys and names, each one query; answers hold none."""
LOCAL = ("127.0.0.1", "::1")


def build_gateway(
    names: Names, replicas: Replicas, authority: Authority, *,
    meter: Meter | None = None, limits: GatewayLimits | None = None, metrics_key: str | None = None,
) -> FastAPI:  # fmt: skip
    """The application. It closes the client of `replicas` when it ends."""
    limits = limits or GatewayLimits()
    gateway = Gateway(names, replicas, Front(authority, limits), Counts(meter))
    app = FastAPI(title="ft-pipeline gateway", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_life(gateway))
    app.add_middleware(AllowList)
    _add_errors(app, gateway.counts)
    _add_facts(app, gateway, metrics_key)

    @app.post("/v1/chat/completions", response_model=None)
    @app.post("/v1/completions", response_model=None)
    async def answers(request: Request) -> Response:
        async with AsyncExitStack() as stack:
            caller = await gateway.front.caller(request)
            stack.enter_context(gateway.front.place(caller))
            asked = read(request.url.path, await gateway.front.body(request))
            target = await to_thread.run_sync(gateway.names.target, asked.model, caller, replicas.inventory)
            answer = Reply(gateway, Routed(asked=asked, caller=caller, target=target))
            if not asked.stream:
                return await unless_gone(request, answer.whole())
            opening = await unless_gone(request, answer.opened())
            stack.push_async_exit(opening.stack)
            return Streamed(
                answer, opening, stack.pop_all()
            )  # the stream outlives this function, and so does its place

    return app


def _life(gateway: Gateway) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await gateway.replicas.look()
        watcher = asyncio.create_task(gateway.replicas.watch())
        yield
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        await gateway.replicas.client.aclose()
        await asyncio.to_thread(gateway.counts.close)

    return life


def _add_facts(app: FastAPI, gateway: Gateway, metrics_key: str | None) -> None:
    """What can be asked about the gateway and the models."""

    @app.get("/health")
    def health() -> JSONResponse:
        alive, known = gateway.replicas.num_alive, len(gateway.replicas.seen)
        body = {"status": "ok" if alive else "no replica answers", "replicas": {"alive": alive, "known": known}}
        return JSONResponse(body, status_code=200 if alive else 503)

    @app.get("/metrics")
    def metrics(request: Request) -> PlainTextResponse:
        said = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        local = metrics_key is None and request.client is not None and request.client.host in LOCAL
        if not local and not (metrics_key and hmac.compare_digest(said, metrics_key.encode())):
            raise Refused(401, "metrics name tenants: FT_METRICS_KEY opens them", kind="authentication_error")
        return PlainTextResponse(gateway.counts.text(_gauges(gateway)), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        caller = await gateway.front.caller(request)
        listed = await to_thread.run_sync(gateway.names.listed, caller)
        return JSONResponse({"object": "list", "data": [model_body(served, name) for name, served in listed.items()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> JSONResponse:
        caller = await gateway.front.caller(request)
        return JSONResponse(model_body(await to_thread.run_sync(gateway.names.known, name, caller), name))


def _gauges(gateway: Gateway) -> dict[str, float]:
    return {
        "ft_gateway_in_flight": gateway.front.in_flight.total(),
        "ft_gateway_replicas_alive": gateway.replicas.num_alive,
        "ft_gateway_replicas_known": len(gateway.replicas.seen),
        "ft_gateway_retries_total": gateway.counts.retries,
        "ft_gateway_unmetered_total": gateway.counts.unmetered,
        "ft_gateway_from_memory_total": gateway.names.last.used + gateway.front.last.used,
    }


def _add_errors(app: FastAPI, counts: Counts) -> None:
    """Every error in OpenAI's shape."""

    @app.exception_handler(Refused)
    def refused(_request: Request, error: Refused) -> JSONResponse:
        counts.refused(error.status)
        after = {"Retry-After": str(error.retry_after_seconds)} if error.retry_after_seconds else None
        body = error_body(str(error), kind=error.kind, param=error.param, code=error.code)
        return JSONResponse(body, status_code=error.status, headers=after)

    @app.exception_handler(StorageError)
    def no_catalog(request: Request, error: StorageError) -> JSONResponse:
        return refused(request, unavailable(f"the catalog does not answer: {error.what}", "catalog"))

    @app.exception_handler(FtError)
    @app.exception_handler(httpx.HTTPError)
    def broken(_request: Request, error: Exception) -> JSONResponse:
        counts.refused(500)
        return JSONResponse(error_body(str(error), kind="server_error"), status_code=500)
