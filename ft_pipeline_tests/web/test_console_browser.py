"""The console in a real browser: the curve grows without a reload, the keyboard reaches everything, no script error, nothing from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from ft_pipeline.store.platform.tables import job_metrics
from ft_pipeline.web.app import build_api
from ft_pipeline.web.platform import Platform
from ft_pipeline_tests.web.served import served
from ft_pipeline_tests.web.test_console import a_job, running

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@pytest.fixture
def opened(platform: Platform, key) -> Iterator[tuple[str, Any]]:
    """(address, page of a browser that signed in by hand); what the browser complained of fails the test."""
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with served(build_api(platform)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(address) else said.append(request.url))
        page.goto(f"{address}/console")
        page.get_by_label("API key").fill(key("acme"))
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/jobs")
        yield address, page
        browser.close()
    assert said == []


def test_a_person_watches_a_job_and_cancels_it(platform: Platform, opened: tuple[str, Any]) -> None:
    address, page = opened
    job = a_job(platform)
    running(platform, job, {1: [(step, 3.0 - step / 50) for step in range(1, 21)]})
    page.goto(f"{address}/console/jobs")
    page.get_by_role("link", name=job[:18]).click()
    assert "at step 20 of 100" in page.get_by_role("img").get_attribute("aria-label")
    with platform.records.write() as db:
        row = {"job_id": job, "attempt": 1, "step": 77, "values": json.dumps({"loss": 0.5}), "created_at": "2026-11-26"}
        db.execute(sa.insert(job_metrics).values(row))
    page.locator('svg[aria-label*="at step 77 of 100"]').wait_for(timeout=10_000)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("asked to cancel", exact=True).wait_for()
    assert platform.records.job(job).wish == "cancel"


def test_the_keyboard_alone_suffices_and_everything_has_a_name(platform: Platform, opened: tuple[str, Any]) -> None:
    address, page = opened
    job = a_job(platform)
    page.goto(f"{address}/console/jobs/{job}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"Jobs", "Models", "Usage", "pause", "cancel", "Sign out"} <= reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, a, input:not([type=hidden]), svg[role=img], progress')]"
        ".filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length))).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_the_screen(platform: Platform, opened: tuple[str, Any], width: int) -> None:
    address, page = opened
    job = a_job(platform, name="a-model-line-with-a-very-long-name-that-somebody-thought-of")
    running(platform, job, {1: [(1, 2.0), (2, 1.0)]})
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("jobs", f"jobs/{job}", "files", "models", "usage", "audit"):
        page.goto(f"{address}/console/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
