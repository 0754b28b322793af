"""Money as Dagster sees it: the budget guard, and beside each asset what an ended job has spent on it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import dagster as dg

from ft_pipeline import settings
from ft_pipeline.billing.budget import cost_by_asset, guard
from ft_pipeline.planning.prices import Prices, read_prices
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.open import Records, open_records
from ft_pipeline.store.platform.rows import TrainingJob

MOST_JOBS = 100
"""Of one tick of `job_costs`; the rest follows at the next."""


def budget_guard() -> dg.SensorDefinition:
    """Warns at four fifths of a tenant's month and pauses at all of it."""

    def look(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        where = settings.load()
        records = open_records(where)
        try:
            done = guard(records, prices=read_prices(where.prices), moment=now())
        finally:
            records.close()
        return dg.SkipReason("; ".join(done) or "every tenant is within its budget")

    return dg.SensorDefinition(
        name="budget_guard", evaluation_fn=look, minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Warns tenants at 80% of their month, pauses their jobs at a checkpoint when it is spent. Launches nothing.",
    )  # fmt: skip


def job_costs() -> dg.SensorDefinition:
    """Records what each ended job has spent, as an observation of the assets that it was spent on."""

    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        where = settings.load()
        seen = json.loads(context.cursor) if context.cursor else ["", ""]
        records = open_records(where)
        try:
            ended = records.ended_after(*seen, limit=MOST_JOBS)
            prices = read_prices(where.prices)
            events = [event for job in ended for event in observations(records, job, prices)]
        finally:
            records.close()
        last = [ended[-1].finished_at, ended[-1].id] if ended else seen
        return dg.SensorResult(asset_events=events, cursor=json.dumps(last))

    return dg.SensorDefinition(
        name="job_costs", evaluation_fn=look, minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Writes the money of each ended job beside the assets that it was spent on.",
    )  # fmt: skip


def observations(records: Records, job: TrainingJob, prices: Prices) -> list[dg.AssetObservation]:
    """One for each asset on which the job spent anything; none for a job that never began."""
    spent = cost_by_asset(records, job, prices=prices, moment=datetime.now(UTC).isoformat(timespec="microseconds"))
    return [
        dg.AssetObservation(
            asset, partition=job.line, description=f"{job.id} {job.status}",
            metadata={"cost": round(money, 6), "currency": prices.currency, "job": job.id},
        )
        for asset, money in spent.items()
        if money > 0
    ]  # fmt: skip
