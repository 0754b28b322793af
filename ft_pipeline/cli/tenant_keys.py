"""`tenants key`: makes API keys, shows each once, replaces and revokes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.keys import ApiKey, NewKey
from ft_pipeline.store.platform.open import open_records
from ft_pipeline.web.keys import digest_of, new_key, open_pepper
from ft_pipeline.web.platform import ROLES


@click.group()
def key() -> None:
    """API keys of a tenant."""


@key.command()
@click.argument("tenant")
@click.option(
    "--name", default="key", show_default=True, help="Who or what uses it: the actor in history and audit log."
)
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, help="Once for each role.")
@click.option("--days", type=click.IntRange(1), help="Until it expires. Default: never.")
@json_option
def create(tenant: str, *, name: str, roles: tuple[str, ...], days: int | None, as_json: bool) -> None:
    """Make a key of TENANT and show it, this once."""
    where = settings.load()
    prefix, text = new_key()
    ends = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="microseconds") if days else None
    new = NewKey(
        prefix=prefix, hmac_sha256=digest_of(text, open_pepper(where)), tenant=tenant, name=name, roles=sorted(set(roles)), expires_at=ends
    )  # fmt: skip
    _show_once(open_records(where).add_key(new, actor=where.actor), text, as_json=as_json)


@key.command()
@click.argument("prefix")
@click.option(
    "--grace-hours",
    type=click.FloatRange(0, 24 * 30),
    default=24,
    show_default=True,
    help="The old key stays good so long.",
)
@click.option("--days", type=click.IntRange(1), help="Until the new key expires. Default: never.")
@json_option
def rotate(prefix: str, *, grace_hours: float, days: int | None, as_json: bool) -> None:
    """Make a key in place of the one with PREFIX, same name and roles, and show it, this once."""
    where = settings.load()
    records = open_records(where)
    old = records.key(prefix)
    made, text = new_key()
    ends = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="microseconds") if days else None
    new = NewKey(
        prefix=made, hmac_sha256=digest_of(text, open_pepper(where)), tenant=old.tenant, name=old.name, roles=old.roles, expires_at=ends
    )  # fmt: skip
    row = records.replace_key(prefix, new, actor=where.actor, grace_seconds=round(grace_hours * 3600))
    _show_once(row, text, as_json=as_json)
    if not as_json:
        console.print(f"the old key {prefix} is good until {records.key(prefix).expires_at}", soft_wrap=True)


@key.command()
@click.argument("prefix")
@click.option("--reason", default="by hand", show_default=True, help="Goes into the audit log.")
def revoke(prefix: str, *, reason: str) -> None:
    """Refuse the key with PREFIX from the next request on."""
    where = settings.load()
    gone = open_records(where).revoke_key(prefix, actor=where.actor, reason=reason)
    console.print(f"key {prefix} of {gone.tenant} ({gone.name}) is revoked")


@key.command(name="list")
@click.argument("tenant", required=False)
@json_option
def list_(tenant: str | None, *, as_json: bool) -> None:
    """List keys, of TENANT or of all: roles, last use, whether they are good."""
    records = open_records(settings.load())
    if tenant is not None:
        records.tenant(tenant)
    table([_row(k, whole=as_json) for k in records.keys(tenant)], as_json=as_json, empty="no key yet: `ft-pipeline tenants key create TENANT`")  # fmt: skip


def _row(found: ApiKey, *, whole: bool) -> dict[str, Any]:
    times = {name: getattr(found, name) for name in ("created_at", "expires_at", "last_used_at")}
    return {
        "prefix": found.prefix,
        "tenant": found.tenant,
        "name": found.name,
        "roles": ", ".join(found.roles),
        "state": found.refused_because(now()) or "good",
        **(times if whole else {name: minute(at) for name, at in times.items()}),
    }


def minute(moment: str | None) -> str | None:
    """A time (UTC) as a person reads it."""
    return moment and moment[:16].replace("T", " ")


def _show_once(row: ApiKey, text: str, *, as_json: bool) -> None:
    if as_json:
        table([{**_row(row, whole=True), "key": text}], as_json=True)
        return
    click.echo(text)
    console.print(
        f"the key of {row.tenant} ({row.name}: {', '.join(row.roles)}); it is shown this once, only its digest is kept",
        soft_wrap=True,
    )
