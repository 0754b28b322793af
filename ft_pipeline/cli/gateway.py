"""`gateway`: the inference door in front of the vLLM fleet, with the platform's keys and its meter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console

if TYPE_CHECKING:
    from ft_pipeline.serve.gateway.authority import Caller
    from ft_pipeline.store.platform.open import Records
    from ft_pipeline.web.auth import Door


@click.command()
@click.option("--port", type=int, help="Default: FT_GATEWAY_PORT, else 8322.")
@click.option("--host", default="127.0.0.1", show_default=True)
def gateway(port: int | None, host: str) -> None:
    """Answer OpenAI-compatible requests with the vLLM replicas of FT_FLEET. Keys with the role `infer` are let in (`ft-pipeline tenants`)."""
    from ft_pipeline.serve.gateway.main import serve_gateway
    from ft_pipeline.web.auth import Door
    from ft_pipeline.web.platform import open_platform

    where = settings.load()
    platform = open_platform(where)
    port = port or where.gateway_port
    console.print(f"gateway on http://{host}:{port}/v1   (Ctrl-C drains and stops it)", soft_wrap=True)
    serve_gateway(where, PlatformKeys(Door(platform)), PlatformMeter(platform.records), host=host, port=port)


class PlatformKeys:
    """The platform's API keys as the gateway asks for them."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def caller(self, bearer_key: str, *, address: str) -> Caller | None:
        """The owner of a key. Raises Refused (429) for who asks too often."""
        from ft_pipeline.serve.gateway.authority import Caller, Refused
        from ft_pipeline.web.refusals import TooMany, Unauthenticated

        try:
            found = self._door.caller(bearer_key, address=address)
        except Unauthenticated:
            return None
        except TooMany as error:
            wait = int(error.headers.get("Retry-After", "1"))
            raise Refused(
                429, error.what, kind="rate_limit_error", code=error.code, retry_after_seconds=wait
            ) from error
        return Caller(tenant=found.tenant, may_infer="infer" in found.roles)


class PlatformMeter:
    """The platform's usage rows: one for each tenant, version and day."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def add(self, tenant: str, version: str, *, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """Counts one answer."""
        counted = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "seconds": seconds}
        self._records.add_usage(tenant, version, **counted)
