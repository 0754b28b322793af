"""`tenants`: who shares the platform, their keys, limits and audit log. The acts of whoever runs it: the HTTP API has none of them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.cli.tenant_keys import key, minute
from ft_pipeline.settings import Settings
from ft_pipeline.store.platform.open import Records, open_records
from ft_pipeline.store.platform.rows import Limits, Tenant
from ft_pipeline.store.platform.tenants import NORMAL_TIER

TEXTS = {
    "concurrent_jobs": "Jobs that run at once.",
    "queued_jobs": "Jobs that wait.",
    "gpu_hours_a_month": "GPU hours in a calendar month (UTC).",
    "storage_bytes": "Bytes of all its files.",
    "money_a_month": "In the price book's currency.",
    "requests_a_minute": "Of one API process, over all its keys.",
    "file_bytes": "Bytes of one file.",
}


class Limit(click.ParamType):
    """A number from 0, or `none` for no limit."""

    name = "N|none"

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | str:
        """`none` stays a word: None means that the option was not given."""
        if value == "none":
            return value
        try:
            number = int(value) if self._whole else float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor `none`", param, ctx)
        if not 0 <= number < 2**62:
            self.fail(f"{value} is no amount: 0 for nothing, `none` for no limit", param, ctx)
        return number


def limit_options(command: Any) -> Any:
    """An option for each of rows.Limits, and the tier."""
    for field in reversed(fields(Limits)):
        kind = Limit(whole="int" in str(field.type))
        command = click.option(f"--{field.name.replace('_', '-')}", type=kind, help=TEXTS[field.name])(command)
    return click.option("--tier", type=int, help=f"Weight in the queue, 1 to 1000; {NORMAL_TIER} for most.")(command)


@click.group()
def tenants() -> None:
    """Tenants of the platform: keys, limits, audit log (docs/platform.md)."""


tenants.add_command(key)


@tenants.command()
@click.argument("name")
@limit_options
@json_option
def add(name: str, *, tier: int | None, as_json: bool, **given: Any) -> None:
    """Add tenant NAME. Limits that are not given have their defaults."""
    where, records = _open()
    made = records.add_tenant(name, actor=where.actor, tier=tier or NORMAL_TIER, limits=Limits(**_changes(given)))
    _show(made, records, as_json=as_json)
    if not as_json:
        console.print(f"next: `ft-pipeline tenants key create {name} --role submit --role infer`", soft_wrap=True)


@tenants.command(name="list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the tenants: tier, keys, jobs, bytes."""
    _, records = _open()
    table([_line(t, records, whole=as_json) for t in records.tenants()], as_json=as_json, empty="no tenant yet: `ft-pipeline tenants add NAME`")  # fmt: skip


@tenants.command()
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> None:
    """Show NAME: limits and what is used of them."""
    _, records = _open()
    _show(records.tenant(name), records, as_json=as_json)


@tenants.command()
@click.argument("name")
@limit_options
@json_option
def limits(name: str, *, tier: int | None, as_json: bool, **given: Any) -> None:
    """Change limits of NAME; those that are not given stay. They hold from the next request on."""
    where, records = _open()
    changes = _changes(given)
    if not changes and tier is None:
        raise click.UsageError("nothing to change: give a limit or --tier")
    _show(records.set_limits(name, actor=where.actor, tier=tier, **changes), records, as_json=as_json)


@tenants.command()
@click.argument("name")
@click.option("--reason", default="by hand", show_default=True, help="Goes into the audit log.")
def suspend(name: str, *, reason: str) -> None:
    """Refuse every key of NAME from now on. Jobs that run go on: cancel them if they must not."""
    where, records = _open()
    records.suspend(name, actor=where.actor, reason=reason)
    console.print(f"{name} is suspended; `ft-pipeline tenants resume {name}` takes it back", soft_wrap=True)


@tenants.command()
@click.argument("name")
@click.option("--reason", default="by hand", show_default=True, help="Goes into the audit log.")
def resume(name: str, *, reason: str) -> None:
    """Accept the keys of NAME again."""
    where, records = _open()
    records.resume(name, actor=where.actor, reason=reason)
    console.print(f"{name} may call again")


@tenants.command()
@click.argument("name", required=False)
@click.option("--verify", is_flag=True, help="Re-hash the whole log: exit 4 where a line was changed or is missing.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Newest lines.")
@json_option
def audit(name: str | None, *, verify: bool, limit: int, as_json: bool) -> None:
    """Show who did what, newest first, of NAME or of all."""
    _, records = _open()
    if verify:
        lines, head = records.verify_audit()
        table([{"lines": lines, "sha256_of_the_last": head}], as_json=as_json)
        return
    if name is not None:
        records.tenant(name)
    rows = [asdict(line) for line in records.audit_lines(tenant=name, limit=limit)]
    if not as_json:
        rows = [
            {"at": minute(row["created_at"]), "tenant": row["tenant"], "actor": row["actor"], "action": row["action"], "subject": row["subject"],
             "detail": ", ".join(f"{k}={v}" for k, v in row["detail"].items())}
            for row in rows
        ]  # fmt: skip
    table(rows, as_json=as_json, empty="nothing was done yet")


def _open() -> tuple[Settings, Records]:
    where = settings.load()
    return where, open_records(where)


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    """What was given, with None for `none`."""
    return {name: None if value == "none" else value for name, value in given.items() if value is not None}


def _line(tenant: Tenant, records: Records, *, whole: bool) -> dict[str, Any]:
    from ft_pipeline.store.platform.rows import LIVE
    from ft_pipeline.web.quotas import WAITING

    counts = records.counts(tenant.id)
    return {
        "tenant": tenant.id,
        "tier": tenant.tier,
        "keys": len(records.keys(tenant.id)),
        "live": sum(counts.get(s, 0) for s in LIVE),
        "waiting": sum(counts.get(s, 0) for s in WAITING),
        "stored_bytes": records.stored_bytes(tenant.id),
        "created_at": tenant.created_at if whole else minute(tenant.created_at),
        "suspended_at": tenant.suspended_at if whole else minute(tenant.suspended_at),
    }


def _show(tenant: Tenant, records: Records, *, as_json: bool) -> None:
    row = _line(tenant, records, whole=as_json)
    if as_json:
        table([{**row, "limits": asdict(tenant.limits)}], as_json=True)
        return
    table([row], as_json=False)
    allowed = [
        {"limit": name, "value": "none" if value is None else value} for name, value in asdict(tenant.limits).items()
    ]
    table(allowed, as_json=False)
