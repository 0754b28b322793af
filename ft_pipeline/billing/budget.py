"""The budget guard: at 80% of a tenant's month a warning, at 100% nothing more starts and what runs is paused at a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ft_pipeline.billing.meter import charges, total
from ft_pipeline.billing.month import Month, month_of
from ft_pipeline.planning.prices import Prices
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import LIVE, Limits, Tenant, TrainingJob

WARN_AT = 0.8
State = Literal["open", "warned", "exhausted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a tenant stands against its limits this month."""

    state: State
    told: str
    """Why, in words; empty while everything is open."""


def standing(month: Month, limits: Limits) -> Standing:
    """The worst of money and GPU hours."""
    used = [
        ("money", month.spent, limits.money_a_month, month.currency),
        ("GPU hours", month.gpu_hours, limits.gpu_hours_a_month, "h"),
    ]
    worst = Standing(state="open", told="")
    for what, spent, limit, unit in used:
        if limit is None or spent < WARN_AT * limit:
            continue
        told = f"{what} of {month.month}: {spent:.2f} of {limit:.2f} {unit}"
        if spent >= limit:
            return Standing(state="exhausted", told=told)
        worst = Standing(state="warned", told=told)
    return worst


def standing_of(records: Records, tenant: Tenant, *, prices: Prices, moment: str) -> Standing:
    """A tenant's standing in the month of `moment`. One without limits of money or GPU hours is not metered for this."""
    if tenant.limits.money_a_month is None and tenant.limits.gpu_hours_a_month is None:
        return Standing(state="open", told="")
    return standing(month_of(records, tenant.id, month=moment[:7], prices=prices, moment=moment), tenant.limits)


def holds(records: Records, *, prices: Prices, moment: str) -> Callable[[str], str | None]:
    """Tenant -> why nothing more of it is released, None for nothing. Only tenants that are asked for are metered, each once."""

    @functools.cache
    def hold(tenant: str) -> str | None:
        found = standing_of(records, records.tenant(tenant), prices=prices, moment=moment)
        return f"its tenant's budget: {found.told}" if found.state == "exhausted" else None

    return hold


def guard(records: Records, *, prices: Prices, moment: str) -> list[str]:
    """Warns and pauses where a budget asks for it; says what was done. Again it does nothing more: it looks at what is, not at what came."""
    done = []
    for tenant in records.tenants():
        found = standing_of(records, tenant, prices=prices, moment=moment)
        if found.state == "open":
            continue
        records.tell_once(tenant.id, f"platform.budget.{found.state}", {"month": moment[:7]})
        for job in records.find_jobs(tenant=tenant.id, statuses=LIVE):
            done += _told(records, job, (found, moment[:7]))
    return done


def cost_by_asset(records: Records, job: TrainingJob, *, prices: Prices, moment: str) -> dict[str, float]:
    """Asset -> money that the job has spent on it: what Dagster shows beside the asset."""
    made = charges(records.intervals(of_jobs=[job.id]), records.steps_of([job.id]), prices=prices, until=moment)
    training = sum(total(made, p) for p in ("useful", "replayed", "checkpoint"))
    return {
        "packed_shards": total(made, "data"),
        "checkpoints": training,
        "eval_report": total(made, "evaluation"),
        "adapter": total(made),
    }


def _told(records: Records, job: TrainingJob, of: tuple[Standing, str]) -> Iterator[str]:
    """What is done about one live job of a tenant with this standing in this month."""
    found, month = of
    if records.note_once(job.id, f"budget {found.state}: {found.told}", mark=f"budget {found.state} {month}"):
        yield f"{job.id} {found.state}: {found.told}"
    if found.state == "exhausted" and job.wish is None:
        records.wish(job.id, "pause")
        yield f"{job.id} is asked to pause"
