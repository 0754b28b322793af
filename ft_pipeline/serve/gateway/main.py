"""The gateway process: catalog, fleet, keys and meter opened, then serving until a signal."""

from __future__ import annotations

import httpx

from ft_pipeline.serve.fleet.inventory import read_inventory
from ft_pipeline.serve.gateway.app import build_gateway
from ft_pipeline.serve.gateway.authority import Authority, Meter
from ft_pipeline.serve.gateway.front import GatewayLimits
from ft_pipeline.serve.gateway.replicas import Replicas
from ft_pipeline.serve.gateway.targets import Names
from ft_pipeline.serve.listening import listen
from ft_pipeline.settings import Settings
from ft_pipeline.store.catalog import open_catalog


def serve_gateway(
    settings: Settings, authority: Authority, meter: Meter | None, *, host: str = "127.0.0.1", port: int
) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes the answers that run. Raises UserError when the port is taken."""
    from ft_pipeline.serve.drain import run_until_told

    limits, inventory = GatewayLimits(), read_inventory(settings.fleet)
    listening = listen(host, port, setting="FT_GATEWAY_PORT")
    catalog = open_catalog(settings)
    replicas = Replicas(inventory, open_client(limits), file=settings.fleet)
    app = build_gateway(
        Names(catalog), replicas, authority, meter=meter, limits=limits, metrics_key=settings.metrics_key
    )
    try:
        run_until_told(app, listening, drain_seconds=limits.drain_seconds)
    finally:
        listening.close()
        catalog.close()


def open_client(limits: GatewayLimits) -> httpx.AsyncClient:
    """Connections to the replicas, kept open; no proxies and no redirects: it talks to listed replicas only."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(limits.silent_seconds, connect=2.0, pool=5.0),
        limits=httpx.Limits(max_connections=limits.max_in_flight + 64, max_keepalive_connections=256),
        trust_env=False,
        follow_redirects=False,
    )
