"""`serve-api`: the platform API of many tenants, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console


@click.command()
@click.option("--port", type=int, help="Default: FT_API_PORT, else 8400.")
@click.option("--host", default="127.0.0.1", show_default=True, help="TLS is the work of an ingress in front.")
@click.option("--with-server", is_flag=True, help="Start this machine's inference server when the first chat comes.")
@click.option("--parent", type=int, hidden=True, help="Process id that must outlive it: `dev` names itself.")
def serve_api(port: int | None, *, host: str, with_server: bool, parent: int | None) -> None:
    """Serve the platform API: files, fine-tuning jobs, models, chat, for every tenant (docs/platform.md)."""
    from ft_pipeline.web import main
    from ft_pipeline.workers.child import die_with_parent

    if parent is not None:
        die_with_parent(parent)
    where = settings.load()
    port = port or where.api_port
    console.print(f"platform API on http://{host}:{port}/v1   (Ctrl-C stops it)", soft_wrap=True)
    main.serve_api(where, host=host, port=port, with_server=with_server)
