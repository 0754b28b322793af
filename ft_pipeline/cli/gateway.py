"""`gateway`: the inference door in front of the vLLM fleet, with the platform's keys and its meter."""

from __future__ import annotations

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console


@click.command()
@click.option("--port", type=int, help="Default: FT_GATEWAY_PORT, else 8322.")
@click.option("--host", default="127.0.0.1", show_default=True)
def gateway(port: int | None, host: str) -> None:
    """Answer OpenAI-compatible requests with the vLLM replicas of FT_FLEET. Keys with the role `infer` are let in (`ft-pipeline tenants`)."""
    from ft_pipeline.serve.gateway.main import serve_gateway
    from ft_pipeline.web.auth import Door
    from ft_pipeline.web.inference import KeyAuthority, UsageMeter
    from ft_pipeline.web.platform import open_platform

    where = settings.load()
    platform = open_platform(where)
    port = port or where.gateway_port
    console.print(f"gateway on http://{host}:{port}/v1   (Ctrl-C drains and stops it)", soft_wrap=True)
    serve_gateway(where, KeyAuthority(Door(platform)), UsageMeter(platform.records), host=host, port=port)
