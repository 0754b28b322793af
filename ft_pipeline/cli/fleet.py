"""`fleet`: what the vLLM replicas hold, bringing them to what the catalog says, and watching that it stays so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from ft_pipeline import resources
from ft_pipeline.cli.show import console

if TYPE_CHECKING:
    from ft_pipeline.serve.fleet.reconcile import Fleet
    from ft_pipeline.serve.fleet.report import FleetReport

COLOURS = {"ok": "green", "repaired": "yellow", "drifted": "yellow"}


@click.group()
def fleet() -> None:
    """The vLLM replicas of FT_FLEET (docs/vllm.md)."""


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def status(as_json: bool) -> None:
    """What every replica holds, and what a reconcile would do. Changes nothing. Exit 1 when something is not as the catalog says."""
    _show(asyncio.run(_open().look()), as_json=as_json)


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def reconcile(as_json: bool) -> None:
    """Load what is in production on every replica, unload what may not answer, repair what drifted. Exit 1 when something is left."""
    _show(asyncio.run(_open().reconcile()), as_json=as_json)


@fleet.command()
@click.option("--every", "seconds", type=click.FloatRange(min=0.5), default=10.0, show_default=True, help="Seconds.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics of the fleet there.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Of the metrics.")
def watch(seconds: float, metrics_port: int | None, host: str) -> None:
    """Reconcile again and again until Ctrl-C or SIGTERM; says what it did, and where replicas are too few."""
    from ft_pipeline.serve.fleet.watch import watch as run

    console.print(f"reconciling every {seconds:g} s; Ctrl-C stops", soft_wrap=True)
    told: Callable[[FleetReport], Awaitable[None]] = _told
    asyncio.run(run(_open, told, every_seconds=seconds, metrics_at=(host, metrics_port) if metrics_port else None))


def _open() -> Fleet:
    from ft_pipeline.serve.fleet.reconcile import open_fleet

    house = resources.open_house()
    return open_fleet(house.settings, catalog=house.catalog, store=house.store)


def _show(report: FleetReport, *, as_json: bool) -> None:
    from ft_pipeline.serve.fleet import report as reports

    if as_json:
        click.echo(reports.as_json(report))
    else:
        _print(report)
    if not report.healthy:
        raise click.exceptions.Exit(1)


async def _told(report: FleetReport) -> None:
    """Only what is news."""
    busy = [r for pool in report.pools for r in pool.replicas if r.state != "ok"]
    if busy or any(pool.refused or pool.removed for pool in report.pools):
        _print(report)


def _print(report: FleetReport) -> None:
    for pool in report.pools:
        idle = "  [dim](nothing stands on it)[/dim]" if pool.idle else ""
        console.print(f"[bold]{pool.pool}[/bold]  {pool.kind}, {pool.base[:12]}{idle}", soft_wrap=True)
        for name, why in pool.refused.items():
            console.print(f"  [red]{name} is not served:[/red] {why}", soft_wrap=True, markup=True)
        if not pool.replicas:
            console.print("  [yellow]no replica[/yellow]")
        for replica in pool.replicas:
            colour = COLOURS.get(replica.state, "red")
            held = ", ".join(f"{name} ({digest[:12]})" for name, digest in replica.adapters.items())
            console.print(f"  {replica.url}  [{colour}]{replica.state}[/{colour}]  {held}", soft_wrap=True)
            for line in replica.done:
                console.print(f"    {line}", soft_wrap=True, markup=False)
            for line in replica.failed:
                console.print(f"    {line}", style="red", soft_wrap=True, markup=False)
        for folder in pool.removed:
            console.print(f"  removed adapter folder {folder[:12]}")
    console.print(f"[dim]{report.at}[/dim]")
