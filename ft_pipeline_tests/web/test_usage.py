"""A tenant's month over HTTP and on the command line: its own jobs only, in money, as JSON, CSV and a picture; budgets that pause."""

from __future__ import annotations

import csv
import io
import json
import secrets
from dataclasses import replace

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from ft_pipeline.billing.budget import guard, holds
from ft_pipeline.cli.usage import usage as command
from ft_pipeline.planning.prices import Prices, read_prices
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.rows import NewJob
from ft_pipeline.store.platform.tables import job_intervals
from ft_pipeline.web.platform import Platform


@pytest.fixture
def prices(platform: Platform) -> Prices:
    return read_prices(platform.settings.prices)


def a_running_job(platform: Platform, tenant: str, *, gpu: str | None = "h100-80gb", hours: float = 1) -> str:
    """A job of 8 GPUs that has been running for so long; it began this month."""
    new = NewJob(
        id=f"ftjob-{secrets.token_hex(12)}", tenant=tenant, line=f"{tenant}/support", tier=10, recipe="{}", recipe_sha256="0" * 64,
        request={}, placement={"gpu": gpu, "processes": 8}, estimate={"money": 40.0}, base_model="b", training_file="f", created_by="k",
    )  # fmt: skip
    platform.records.submit(new, admit=lambda _counts: None)
    platform.records.move(new.id, "provisioning")
    platform.records.move(new.id, "running")
    moment = now()
    began = f"{moment[:8]}01T00:00:00.000000+00:00" if int(moment[8:10]) > 1 else moment
    with platform.records.write() as db:
        here = sa.update(job_intervals).where(job_intervals.c.job_id == new.id, job_intervals.c.state == "running")
        db.execute(here.values(started_at=began, ended_at=_later(began, hours)))
    return new.id


def _later(moment: str, hours: float) -> str:
    from datetime import datetime, timedelta

    return (datetime.fromisoformat(moment) + timedelta(hours=hours)).isoformat(timespec="microseconds")


def test_a_month_is_the_callers_own(platform: Platform, as_tenant, prices: Prices) -> None:
    acme, other = as_tenant("acme"), as_tenant("other")
    job = a_running_job(platform, "acme")
    said = acme.get("/v1/platform/usage").json()
    assert said["by_purpose"]["useful"] == pytest.approx(8 * prices.gpu("H100").on_demand)
    assert (said["gpu_hours"], [j["id"] for j in said["jobs"]]) == (pytest.approx(8), [job])
    assert other.get("/v1/platform/usage").json()["jobs"] == []


def test_csv_adds_up_and_the_picture_is_a_picture(platform: Platform, as_tenant) -> None:
    acme = as_tenant("acme")
    a_running_job(platform, "acme")
    lines = list(csv.DictReader(io.StringIO(acme.get("/v1/platform/usage.csv").text)))
    spent = acme.get("/v1/platform/usage").json()["spent"]
    assert sum(float(line["money"]) for line in lines) == pytest.approx(spent, abs=1e-3)
    picture = acme.get("/v1/platform/usage.svg")
    assert picture.headers["content-type"].startswith("image/svg+xml")
    assert "useful" in picture.text


@pytest.mark.parametrize("month", ["2026-13", "november", "2026-1", "../etc", "2026-11-01"])
def test_what_is_no_month_is_refused(as_tenant, month: str) -> None:
    assert as_tenant("acme").get("/v1/platform/usage", params={"month": month}).status_code == 400


def test_prices_are_shown_only_with_a_key(client, as_tenant) -> None:
    assert client.get("/v1/platform/prices").status_code == 401
    assert as_tenant("acme").get("/v1/platform/prices").json()["gpus"]["H100"]["spot"] > 0


def test_an_exhausted_budget_pauses_what_runs_and_says_so_once(platform: Platform, key, prices: Prices) -> None:
    key("acme", money_a_month=10.0)
    key("rich", money_a_month=1000.0)
    job, other = a_running_job(platform, "acme"), a_running_job(platform, "rich")
    moment = _later(now(), 24)
    done = guard(platform.records, prices=prices, moment=moment)
    assert platform.records.job(job).wish == "pause"
    assert platform.records.job(other).wish is None
    assert [line for line in done if "pause" in line] == [f"{job} is asked to pause"]
    assert guard(platform.records, prices=prices, moment=moment) == []
    hold = holds(platform.records, prices=prices, moment=moment)
    assert "budget" in (hold("acme") or "")
    assert hold("rich") is None


def test_the_command_shows_every_tenant_and_writes_the_picture(platform: Platform, key, tmp_path) -> None:
    key("acme"), key("other")
    a_running_job(platform, "acme")
    shown = CliRunner().invoke(command, ["--json"])
    assert [(row["tenant"], row["jobs"]) for row in json.loads(shown.output)] == [("acme", 1), ("other", 0)]
    drawn = CliRunner().invoke(command, ["acme", "--plot", str(tmp_path / "month.svg")])
    assert drawn.exit_code == 0
    assert (tmp_path / "month.svg").read_text().startswith("<svg")


def test_a_price_book_without_charges_is_read(platform: Platform, prices: Prices, tmp_path) -> None:
    text = platform.settings.prices.read_text()
    without = text[: text.index("\ncharges:")] + text[text.index("\nassumed:") :]
    (tmp_path / "book.yaml").write_text(without)
    book = read_prices(tmp_path / "book.yaml")
    assert replace(prices, charges=book.charges) == book
    assert book.charges.machine_hour == 0
