"""What a tenant used and what it costs: the month as JSON, CSV and a picture, and the price book. Route file of billing."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from pydantic import BaseModel

from ft_pipeline.billing.budget import standing
from ft_pipeline.billing.month import JobBill, Month, csv_rows, month_of
from ft_pipeline.billing.picture import month_svg
from ft_pipeline.planning.prices import Prices, read_prices
from ft_pipeline.store.catalog_database import now
from ft_pipeline.web.auth import needs
from ft_pipeline.web.platform import Caller, Platform

MONTH = Query(
    default=None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$", description="A month (UTC), 2026-11. Default: this one."
)


class Csv(Response):
    """A file that a spreadsheet opens."""

    media_type = "text/csv"


class Svg(Response):
    """A picture."""

    media_type = "image/svg+xml"


class JobCost(BaseModel):
    """One job in the month."""

    id: str
    model: str
    status: str
    money: float
    """In this month."""
    money_so_far: float
    estimated: float | None
    forecast_error: float | None
    """(actual - estimated) / actual, of a job that succeeded."""
    gpu_hours: float
    by_purpose: dict[str, float]


class ModelCost(BaseModel):
    """Answers of one version."""

    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float


class Usage(BaseModel):
    """A tenant's month."""

    object: str = "usage"
    tenant: str
    month: str
    currency: str
    spent: float
    training: float
    serving: float
    storage: float
    gpu_hours: float
    stored_bytes: int
    by_purpose: dict[str, float]
    """Money of jobs: useful, replayed after a preemption, checkpoint, evaluation, data; queue and preempted cost nothing."""
    budget: str
    """open, warned (80%) or exhausted: then nothing more starts and live jobs are paused at a checkpoint."""
    budget_told: str
    median_forecast_error: float | None
    jobs: list[JobCost]
    models: list[ModelCost]


class GpuPrice(BaseModel):
    """Per GPU and hour."""

    on_demand: float
    spot: float
    memory_mib: int


class PriceList(BaseModel):
    """The price book as far as tenants are charged by it."""

    object: str = "price_book"
    dated: str
    currency: str
    gpus: dict[str, GpuPrice]
    machine_hour: float
    prompt_million: float
    completion_million: float
    storage_gib_month: float


def router(platform: Platform) -> APIRouter:
    """The routes; the month is always the caller's own tenant's."""
    routes = APIRouter(prefix="/v1/platform", tags=["usage"])

    def month_here(caller: Caller, month: str | None) -> Month:
        moment = now()
        prices = read_prices(platform.settings.prices)
        return month_of(platform.records, caller.tenant, month=month or moment[:7], prices=prices, moment=moment)

    @routes.get("/usage")
    def used(caller: Annotated[Caller, Depends(needs())], month: str | None = MONTH) -> Usage:
        limits = platform.records.tenant(caller.tenant).limits
        found = month_here(caller, month)
        stand = standing(found, limits)
        return _usage(found, budget=stand.state, told=stand.told)

    _add_files(routes, month_here)

    @routes.get("/prices")
    def price_list(_caller: Annotated[Caller, Depends(needs())]) -> PriceList:
        return _price_list(read_prices(platform.settings.prices))

    return routes


def _add_files(routes: APIRouter, month_here: Callable[[Caller, str | None], Month]) -> None:
    @routes.get("/usage.csv", response_class=Csv)
    def lines(caller: Annotated[Caller, Depends(needs())], month: str | None = MONTH) -> Response:
        found, text = month_here(caller, month), io.StringIO()
        csv.writer(text).writerows(csv_rows(found))
        name = f'attachment; filename="usage-{found.tenant}-{found.month}.csv"'
        return Csv(text.getvalue(), headers={"Content-Disposition": name})

    @routes.get("/usage.svg", response_class=Svg)
    def picture(caller: Annotated[Caller, Depends(needs())], month: str | None = MONTH) -> Response:
        return Svg(month_svg(month_here(caller, month)))


def _usage(month: Month, *, budget: str, told: str) -> Usage:
    errors = month.forecast_errors()
    return Usage(
        tenant=month.tenant, month=month.month, currency=month.currency, spent=month.spent, training=month.training,
        serving=month.serving, storage=month.storage, gpu_hours=month.gpu_hours, stored_bytes=month.stored_bytes,
        by_purpose=month.by_purpose(), budget=budget, budget_told=told,
        median_forecast_error=statistics.median(errors) if errors else None,
        jobs=[_job(bill) for bill in month.jobs], models=_models(month),
    )  # fmt: skip


def _job(bill: JobBill) -> JobCost:
    by: dict[str, float] = {}
    for charge in bill.charges:
        by[charge.purpose] = by.get(charge.purpose, 0.0) + charge.money
    return JobCost(
        id=bill.job.id, model=bill.job.line, status=bill.job.status, money=sum(by.values()), money_so_far=bill.whole,
        estimated=bill.estimated, forecast_error=bill.forecast_error,
        gpu_hours=sum(c.gpu_seconds for c in bill.charges) / 3600, by_purpose=by,
    )  # fmt: skip


def _models(month: Month) -> list[ModelCost]:
    found: dict[str, dict[str, Any]] = {}
    for answered, money in month.answers:
        row = found.setdefault(
            answered.model, {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "money": 0.0}
        )
        for name in ("requests", "prompt_tokens", "completion_tokens"):
            row[name] += getattr(answered, name)
        row["money"] += money
    return [ModelCost(model=model, **row) for model, row in sorted(found.items())]


def _price_list(prices: Prices) -> PriceList:
    charged = prices.charges
    return PriceList(
        dated=prices.dated.isoformat(), currency=prices.currency,
        gpus={n: GpuPrice(on_demand=g.on_demand, spot=g.spot, memory_mib=g.memory_mib) for n, g in prices.gpus.items()},
        machine_hour=charged.machine_hour, prompt_million=charged.prompt_million,
        completion_million=charged.completion_million, storage_gib_month=charged.storage_gib_month,
    )  # fmt: skip
