"""What a job will cost: from the plan where GPUs are asked for, else from what jobs like it took; nothing where nobody knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ft_pipeline.billing.forecast import forecast
from ft_pipeline.planner import Plan
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.settings import PACKAGE
from ft_pipeline.store.platform.rows import Interval, TrainingJob
from ft_pipeline.workers.job import Placement

PRICES = read_prices(PACKAGE / "planning" / "prices.yaml")
PLAN = Plan(steps=(), optimizer_steps=600, estimate=None, shape_from=None)


def spent(state: str, start: int, end: int) -> Interval:
    begun, ended = (f"2026-11-26T10:{at // 60:02d}:{at % 60:02d}+00:00" for at in (start, end))
    return Interval(
        job_id="ftjob-1", tenant="acme", attempt=1, state=state, started_at=begun, ended_at=ended,  # type: ignore[arg-type]
        gpu=None, gpus=1, spot=False, from_step=None, to_step=None,
    )  # fmt: skip


def a_past_job(a_job: TrainingJob) -> tuple[TrainingJob, list[Interval]]:
    """200 steps in 100 s, 60 s of data rooms and 40 s of gate."""
    done = replace(a_job, status="succeeded", step=200, placement={"processes": 1})
    return done, [
        spent("queued", 0, 500), spent("provisioning", 500, 560), spent("running", 560, 660), spent("evaluating", 660, 700),
    ]  # fmt: skip


def test_a_job_like_earlier_ones_takes_what_their_steps_and_rooms_took(a_job: TrainingJob) -> None:
    said = forecast(PLAN, Placement(), prices=PRICES, past=[a_past_job(a_job)])
    assert said["hours"] == pytest.approx((600 * 0.5 + 100) / 3600, abs=1e-4)
    assert said["money"] == pytest.approx(said["hours"] * PRICES.charges.machine_hour, abs=1e-4)
    assert "0.5 s a step" in said["from"]


def test_where_nobody_knows_nothing_is_said(a_job: TrainingJob) -> None:
    job, intervals = a_past_job(a_job)
    for past in (
        [],
        [(replace(job, status="failed"), intervals)],
        [(replace(job, placement={"gpu": "h100-80gb"}), intervals)],
    ):
        said = forecast(PLAN, Placement(), prices=PRICES, past=past)
        assert (said["hours"], said["money"], said["steps"]) == (None, None, 600)
        assert said["from"]


def test_without_the_number_of_steps_nothing_is_said(a_job: TrainingJob) -> None:
    said = forecast(replace(PLAN, optimizer_steps=None), Placement(), prices=PRICES, past=[a_past_job(a_job)])
    assert said["money"] is None
    assert "curated" in said["from"]
