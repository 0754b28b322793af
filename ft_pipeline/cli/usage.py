"""`usage`: what tenants used in a month and what it costs, as a table, JSON, CSV or a picture."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import click

from ft_pipeline.cli.show import console, json_option, table


@click.command()
@click.argument("tenant", required=False)
@click.option("--month", help="As 2026-11, UTC. Default: this month.")
@click.option("--csv", "as_csv", is_flag=True, help="Every charge as a line of CSV.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture (SVG) of TENANT's month."
)
@json_option
def usage(tenant: str | None, *, month: str | None, as_csv: bool, plot: Path | None, as_json: bool) -> None:
    """What TENANT, or every tenant, used in a month: GPU hours, money by purpose, budget, how wrong the forecasts were."""
    from ft_pipeline import settings
    from ft_pipeline.billing.month import month_of
    from ft_pipeline.errors import UserError
    from ft_pipeline.planning.prices import read_prices
    from ft_pipeline.store.catalog_database import now
    from ft_pipeline.store.platform.open import open_records

    if plot and not tenant:
        raise UserError("--plot shows one tenant", cure="name it: `ft-pipeline usage TENANT --plot FILE`")
    where = settings.load()
    records, moment = open_records(where), now()
    names = [records.tenant(tenant).id] if tenant else [t.id for t in records.tenants()]
    prices = read_prices(where.prices)
    months = [month_of(records, n, month=month or moment[:7], prices=prices, moment=moment) for n in names]
    if as_csv:
        _write_csv(months)
        return
    if plot:
        from ft_pipeline.billing.picture import month_svg
        from ft_pipeline.store.files import write_atomic

        write_atomic(plot, month_svg(months[0]).encode())
        console.print(f"wrote {plot}")
    table([_row(records, m) for m in months], as_json=as_json, empty="no tenant yet: `ft-pipeline tenants add NAME`")


def _write_csv(months: list[Any]) -> None:
    from ft_pipeline.billing.month import CSV_HEAD, csv_rows

    out = csv.writer(sys.stdout)
    out.writerow(("tenant", *CSV_HEAD))
    for month in months:
        out.writerows((month.tenant, *row) for row in list(csv_rows(month))[1:])


def _row(records: Any, month: Any) -> dict[str, Any]:
    import statistics

    from ft_pipeline.billing.budget import standing

    limits = records.tenant(month.tenant).limits
    errors, by = month.forecast_errors(), month.by_purpose()
    return {
        "tenant": month.tenant, "month": month.month, "jobs": len(month.jobs), "gpu_hours": round(month.gpu_hours, 3),
        "spent": round(month.spent, 4), "budget": limits.money_a_month, "standing": standing(month, limits).state,
        **{p: round(by[p], 4) for p in ("useful", "replayed", "evaluation")}, "serving": round(month.serving, 4),
        "storage": round(month.storage, 4), "currency": month.currency,
        "median_forecast_error": round(statistics.median(errors), 3) if errors else None,
    }  # fmt: skip
