"""Charges: no second is charged twice or lost, replayed steps are told from useful ones, budgets pause, forecasts are compared."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.billing.budget import standing
from ft_pipeline.billing.meter import charges, hourly, replayed_share, total
from ft_pipeline.billing.month import JobBill, Month, bounds, csv_rows
from ft_pipeline.billing.picture import month_svg
from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.planning.prices import Prices, read_prices
from ft_pipeline.settings import PACKAGE
from ft_pipeline.store.platform.metering import Answered
from ft_pipeline.store.platform.rows import Interval, Limits

BEGIN = datetime(2026, 11, 3, 12, tzinfo=UTC)
STATES = ("queued", "provisioning", "running", "checkpointing", "preempted", "evaluating", "paused")


@pytest.fixture(scope="module")
def prices() -> Prices:
    return read_prices(PACKAGE / "planning" / "prices.yaml")


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


def spent_in(state: str, start: float, end: float | None, attempt: int = 1) -> Interval:
    return Interval(
        job_id="ftjob-1", tenant="acme", attempt=attempt, state=state, started_at=at(start),  # type: ignore[arg-type]
        ended_at=None if end is None else at(end), gpu="h100-80gb", gpus=8, spot=True, from_step=None, to_step=None,
    )  # fmt: skip


def test_an_hour_of_eight_spot_gpus_costs_what_the_book_says(prices: Prices) -> None:
    made = charges([spent_in("running", 0, 3600)], {}, prices=prices, until=at(9999))
    assert total(made) == pytest.approx(8 * prices.gpu("H100").spot)
    assert sum(c.gpu_seconds for c in made) == 8 * 3600


def test_waiting_costs_nothing_and_data_rooms_cost_the_machine(prices: Prices) -> None:
    waiting = [spent_in(state, 0, 3600) for state in ("queued", "paused", "preempted")]
    assert total(charges(waiting, {}, prices=prices, until=at(9999))) == 0
    data = charges([spent_in("provisioning", 0, 3600)], {}, prices=prices, until=at(9999))
    assert total(data) == pytest.approx(prices.charges.machine_hour)
    assert data[0].gpu_seconds == 0


def test_steps_that_are_made_again_are_replayed_not_useful(prices: Prices) -> None:
    """Preempted at step 130, resumed from the checkpoint of step 100: 30 of the 100 steps of the second attempt."""
    steps = {"ftjob-1": {1: (1, 130), 2: (101, 200)}}
    made = charges(
        [spent_in("running", 0, 1300), spent_in("running", 2000, 3000, attempt=2)], steps, prices=prices, until=at(9999)
    )
    replayed = [c for c in made if c.purpose == "replayed"]
    assert [(c.attempt, round(c.seconds)) for c in replayed] == [(2, 300)]
    assert sum(c.seconds for c in made) == pytest.approx(2300)


@pytest.mark.parametrize(
    ("attempts", "attempt", "share"),
    [
        ({}, 1, 0),
        ({1: (1, 10)}, 1, 0),
        ({1: (1, 10), 2: (11, 20)}, 2, 0),
        ({1: (1, 10), 2: (1, 5)}, 2, 1),
        ({1: (1, 10), 2: (6, 15)}, 2, 0.5),
        ({1: (1, 10), 2: (6, 8), 3: (6, 15)}, 3, 0.5),
    ],
)
def test_the_replayed_share_of_an_attempt(attempts: dict[int, tuple[int, int]], attempt: int, share: float) -> None:
    assert replayed_share(attempts, attempt) == pytest.approx(share)


@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.floats(0, 5000)), min_size=1, max_size=20), st.floats(1, 60_000),
    st.lists(st.integers(1, 300), min_size=0, max_size=4),
)  # fmt: skip
def test_no_second_is_lost_or_charged_twice(
    prices: Prices, spans: list[tuple[str, float]], cut: float, lasts: list[int]
) -> None:
    """Wherever a month ends: what is charged before and after it adds up to the whole."""
    here, intervals = 0.0, []
    for state, length in spans:
        intervals.append(spent_in(state, here, here + length))
        here += length
    steps = {"ftjob-1": {n: (max(1, last - 50), last) for n, last in enumerate(lasts, start=1)}}
    whole = charges(intervals, steps, prices=prices, until=at(here))
    before = charges(intervals, steps, prices=prices, until=at(min(cut, here)))
    after = charges(intervals, steps, prices=prices, since=at(min(cut, here)), until=at(here))
    assert sum(c.seconds for c in whole) == pytest.approx(here, abs=1e-4 * len(spans))
    assert total(before) + total(after) == pytest.approx(total(whole), abs=1e-6 * len(spans))
    assert all(c.money >= 0 and c.seconds > 0 for c in whole)


def test_an_open_interval_counts_up_to_now(prices: Prices) -> None:
    made = charges([spent_in("running", 0, None)], {}, prices=prices, until=at(90))
    assert [c.seconds for c in made] == [90]


def test_a_gpu_without_a_price_is_named(prices: Prices) -> None:
    with pytest.raises(NotFoundError, match="no GPU 'B300' in the price book"):
        hourly(prices, gpu="B300", gpus=1, spot=False)


@pytest.mark.parametrize(("month", "until"), [("2026-12", "2027-01-01"), ("2028-02", "2028-03-01")])
def test_a_month_ends_where_the_next_begins(month: str, until: str) -> None:
    since, end = bounds(month)
    assert (since[:10], end[:10]) == (f"{month}-01", until)


def test_what_is_no_month_is_refused() -> None:
    with pytest.raises(UserError, match="'2026-13' is not a month"):
        bounds("2026-13")


def a_month(money: float) -> Month:
    answer = Answered(tenant="acme", model="acme/a@1", day="2026-11-04", requests=2, prompt_tokens=10, completion_tokens=5, seconds=1)  # fmt: skip
    return Month(
        tenant="acme", month="2026-11", currency="USD", jobs=(), answers=((answer, money),), stored_bytes=0, storage=0.0
    )


@pytest.mark.parametrize(
    ("spent", "limit", "state"),
    [(79, 100, "open"), (80, 100, "warned"), (99.99, 100, "warned"), (100, 100, "exhausted"), (1, 0, "exhausted"), (500, None, "open")],
)  # fmt: skip
def test_a_budget_warns_at_four_fifths_and_ends_at_all_of_it(spent: float, limit: float | None, state: str) -> None:
    found = standing(a_month(spent), Limits(money_a_month=limit))
    assert found.state == state
    assert (f"{spent:.2f} of" in found.told) == (state != "open")


def test_a_report_says_every_line_and_a_picture_every_purpose() -> None:
    rows = list(csv_rows(a_month(3.5)))
    assert rows[1][:4] == ("answers", "acme/a@1", "2026-11-04", "serve")
    assert all(len(row) == len(rows[0]) for row in rows)
    assert "serve 3.50" in month_svg(a_month(3.5))
    assert "nothing was spent in 2026-11" in month_svg(replace(a_month(0), answers=()))


def test_a_forecast_is_compared_only_with_what_succeeded(a_job) -> None:
    bill = JobBill(job=replace(a_job, status="succeeded"), charges=(), estimated=8.0, whole=10.0)
    assert bill.forecast_error == pytest.approx(0.2)
    assert replace(bill, job=replace(a_job, status="cancelled")).forecast_error is None
    assert replace(bill, estimated=None).forecast_error is None
