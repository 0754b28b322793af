"""The reconciler as a process: pass after pass, and the fleet's load for an autoscaler."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from ft_pipeline.errors import FtError
from ft_pipeline.serve.fleet.inventory import Inventory, Pool
from ft_pipeline.serve.fleet.reconcile import Fleet
from ft_pipeline.serve.fleet.replica import Replica
from ft_pipeline.serve.fleet.report import FleetReport
from ft_pipeline.serve.fleet.signals import Load, exposition, load_of, signal_of

logger = logging.getLogger(__name__)


async def watch(
    open_fleet: Callable[[], Fleet], told: Callable[[FleetReport], Awaitable[None]], *,
    every_seconds: float, metrics_at: tuple[str, int] | None = None,
) -> None:  # fmt: skip
    """Until a signal. The inventory is read at every pass; a pass that fails is told and the next one comes."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = _server(open_fleet, *metrics_at) if metrics_at else None
    serving = asyncio.create_task(server.serve()) if server else None
    while not stopped.is_set():
        try:
            fleet = await asyncio.to_thread(open_fleet)
            await told(await fleet.reconcile())
        except FtError as error:
            logger.error("the fleet was not reconciled: %s", error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), every_seconds)
    if server and serving:
        server.should_exit = True
        await serving


async def loads(inventory: Inventory, client: httpx.AsyncClient) -> Mapping[str, list[Load]]:
    """Pool -> the load of each replica that answers."""
    found = await asyncio.gather(*(_loads(pool, client) for pool in inventory.pools))
    return {pool.name: rows for pool, rows in zip(inventory.pools, found, strict=True)}


def metrics_app(inventory: Callable[[], Inventory]) -> FastAPI:
    """`/metrics`: the load of the fleet, asked of the replicas at every scrape."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        fleet = await asyncio.to_thread(inventory)
        async with httpx.AsyncClient(trust_env=False) as client:
            found = await loads(fleet, client)
        signals = [signal_of(pool, found[pool.name]) for pool in fleet.pools]
        return PlainTextResponse(exposition(signals, found), media_type="text/plain; version=0.0.4")

    return app


async def _loads(pool: Pool, client: httpx.AsyncClient) -> list[Load]:
    async def load(url: str) -> Load | None:
        try:
            return load_of(url, await Replica(url, client).metrics())
        except httpx.HTTPError:
            return None  # who does not answer is no replica for the autoscaler either

    rows = await asyncio.gather(*(load(url) for url in await asyncio.to_thread(pool.addresses)))
    return [row for row in rows if row]


def _server(open_fleet: Callable[[], Fleet], host: str, port: int) -> uvicorn.Server:
    app = metrics_app(lambda: open_fleet().inventory)
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))
    server.capture_signals = suppress  # type: ignore[method-assign, assignment] - the loop above has them
    return server
