"""Money in Dagster: each ended job's costs beside its assets, once; the guard pauses what a spent budget does not cover."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from ft_pipeline.costs import budget_guard, job_costs
from ft_pipeline.settings import Settings
from ft_pipeline.store.platform.open import Records, open_records
from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.web.platform import open_platform
from ft_pipeline_tests.web.test_usage import a_running_job


@pytest.fixture
def records(home: Settings) -> Records:
    opened = open_records(home)
    opened.add_tenant("acme", actor="t", limits=Limits(money_a_month=1.0))
    return opened


def test_an_ended_jobs_costs_stand_beside_its_assets_once(home: Settings, records: Records) -> None:
    job = a_running_job(open_platform(home), "acme")
    records.move(job, "succeeded")
    with dg.instance_for_test() as instance:
        first = job_costs()(dg.build_sensor_context(instance))
        again = job_costs()(dg.build_sensor_context(instance, cursor=first.cursor))
    costs = {event.asset_key.to_user_string(): event.metadata["cost"].value for event in first.asset_events}
    assert costs["checkpoints"] == pytest.approx(8 * 3.89)
    assert {event.partition for event in first.asset_events} == {"acme/support"}
    assert again.asset_events == []
    assert json.loads(again.cursor)[1] == job


def test_the_guard_pauses_what_a_spent_budget_does_not_cover(home: Settings, records: Records) -> None:
    job = a_running_job(open_platform(home), "acme", hours=0.1)
    with dg.instance_for_test() as instance:
        said = budget_guard()(dg.build_sensor_context(instance))
    assert records.job(job).wish == "pause"
    assert "is asked to pause" in said.skip_message
