"""The console: signing in with a key, pages of the own tenant only, forms that no other site can send, what buttons do."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from ft_pipeline.store.platform.rows import NewJob
from ft_pipeline.store.platform.tables import job_metrics
from ft_pipeline.web.platform import Platform

Browser = Callable[..., TestClient]


@pytest.fixture
def browser(client: TestClient, key) -> Browser:
    """`browser("acme", ["submit"])`: a client that signed in with a key of the tenant."""

    def sign_in(tenant: str = "acme", roles: object = ("submit", "approve", "audit"), **limits: object) -> TestClient:
        made = TestClient(client.app, follow_redirects=False)
        made.app_key = key(tenant, roles, **limits)  # type: ignore[attr-defined]
        answer = made.post("/console/login", data={"key": made.app_key})  # type: ignore[attr-defined]
        assert (answer.status_code, answer.headers["location"]) == (303, "/console")
        return made

    return sign_in


def a_job(platform: Platform, tenant: str = "acme", *, name: str = "support") -> str:
    new = NewJob(
        id=f"ftjob-{secrets.token_hex(12)}", tenant=tenant, line=f"{tenant}/{name}", tier=10, recipe=json.dumps({"name": name}),
        recipe_sha256="0" * 64, request={}, placement={"processes": 1}, estimate={"money": 0.5}, base_model="tiny-docs",
        training_file="file-1", created_by="k",
    )  # fmt: skip
    platform.records.submit(new, admit=lambda _counts: None)
    return new.id


def running(platform: Platform, job: str, losses: dict[int, list[tuple[int, float]]]) -> None:
    """Makes a job that runs and reported these losses: attempt -> (step, loss)."""
    platform.records.move(job, "provisioning")
    platform.records.move(job, "running")
    with platform.records.write() as db:
        for attempt, steps in losses.items():
            for step, loss in steps:
                row = {"job_id": job, "attempt": attempt, "step": step, "values": json.dumps({"loss": loss})}
                db.execute(sa.insert(job_metrics).values(**row, created_at="2026-11-26T00:00:00+00:00"))
    platform.records.progress(job, attempt=1, step=40, planned_steps=100, loss=1.5, tokens_per_second=900.0)


def token_of(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page)
    assert found, "the page has no form"
    return found[1]


def test_without_a_session_every_page_leads_to_the_door(client: TestClient) -> None:
    outside = TestClient(client.app, follow_redirects=False)
    for path in ("", "/jobs", "/jobs/ftjob-1", "/files", "/models", "/models/a/b@1", "/usage", "/audit"):
        answer = outside.get(f"/console{path}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login"), path
    assert outside.get("/console/login").status_code == 200


def test_a_wrong_key_is_not_let_in_and_says_why(client: TestClient) -> None:
    answer = TestClient(client.app).post("/console/login", data={"key": "sk-ft-nonsense"})
    assert answer.status_code == 401
    assert "Incorrect API key" in answer.text


def test_the_cookie_is_closed_to_scripts_and_other_sites(browser: Browser, client: TestClient) -> None:
    made = browser()
    cookie = made.post("/console/login", data={"key": made.app_key}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert made.app_key not in cookie


@pytest.mark.parametrize("change", [lambda c: c[:-1] + "0", lambda c: "x" + c[1:], lambda _c: "a.b.c.d", lambda _c: ""])
def test_a_forged_cookie_is_nobodys(browser: Browser, change: Callable[[str], str]) -> None:
    made = browser()
    value = made.cookies["ft_console"]
    if change(value) == value:
        pytest.skip("the change changes nothing")
    made.cookies.clear()
    made.cookies.set("ft_console", change(value), path="/console")
    assert made.get("/console/jobs").status_code == 303


def test_a_revoked_key_is_out_at_once(platform: Platform, browser: Browser) -> None:
    made = browser()
    assert made.get("/console/jobs").status_code == 200
    platform.records.revoke_key(made.app_key.split("-")[2], actor="tester", reason="leaked")
    assert made.get("/console/jobs").status_code == 303


def test_a_tenant_sees_its_own_only(platform: Platform, browser: Browser) -> None:
    mine, other = a_job(platform, "acme") if browser("acme") else "", ""
    browser("other")
    other = a_job(platform, "other", name="secret")
    page = browser("acme").get("/console/jobs").text
    assert mine[:18] in page
    assert "secret" not in page
    assert browser("acme").get(f"/console/jobs/{other}").status_code == 404


def test_a_job_shows_its_curve_its_events_and_what_it_costs(platform: Platform, browser: Browser) -> None:
    made = browser()
    job = a_job(platform)
    running(platform, job, {1: [(step, 3.0 - step / 50) for step in range(1, 41)], 2: [(30, 2.4), (31, 2.38)]})
    page = made.get(f"/console/jobs/{job}").text
    assert page.count("<polyline") == 2, "a line for each attempt"
    assert "training loss by step" in page
    assert "the job is running" in page
    assert "of 0.5000 estimated" in page
    part = made.get(f"/console/jobs/{job}?part=1").text
    assert "<html" not in part
    assert "<polyline" in part


def test_names_from_users_are_text_not_markup(platform: Platform, browser: Browser) -> None:
    made = browser()
    job = a_job(platform)
    platform.records.move(
        job, "failed", error={"code": "x", "message": "<script>alert(1)</script>"}, message="<img src=x>"
    )
    page = made.get(f"/console/jobs/{job}").text
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_buttons_do_what_they_say_and_are_written_down(platform: Platform, browser: Browser) -> None:
    made = browser()
    job = a_job(platform)
    page = made.get(f"/console/jobs/{job}").text
    for act, status in [("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")]:
        answer = made.post(f"/console/jobs/{job}", data={"token": token_of(page), "act": act})
        assert answer.status_code == 303
        assert platform.records.job(job).status == status
    acts = [line.action for line in platform.records.audit_lines(tenant="acme")]
    assert acts[:3] == ["job.cancel", "job.resume", "job.pause"]


def test_a_form_of_another_site_moves_nothing(platform: Platform, browser: Browser) -> None:
    made = browser()
    job = a_job(platform)
    good = token_of(made.get(f"/console/jobs/{job}").text)
    forged = [
        ({"act": "cancel"}, {}),
        ({"act": "cancel", "token": "0" * 64}, {}),
        ({"act": "cancel", "token": token_of(browser("acme").get("/console/jobs").text)}, {}),
        ({"act": "cancel", "token": good}, {"Origin": "https://evil.example"}),
    ]
    for data, headers in forged:
        assert made.post(f"/console/jobs/{job}", data=data, headers=headers).status_code == 403
    assert platform.records.job(job).status == "queued"


def test_who_may_only_read_presses_no_button(platform: Platform, browser: Browser) -> None:
    reader = browser("acme", ["audit"])
    job = a_job(platform)
    page = reader.get(f"/console/jobs/{job}").text
    assert "Cancel" not in page
    answer = reader.post(f"/console/jobs/{job}", data={"token": token_of(page), "act": "cancel"})
    assert answer.status_code == 403
    assert platform.records.job(job).status == "queued"


def test_pages_forbid_scripts_that_are_not_ours(browser: Browser) -> None:
    headers = browser().get("/console/jobs").headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe-inline'" not in headers["content-security-policy"].split("script-src")[1].split(";")[0]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_an_error_is_a_page_with_the_three_sentences(browser: Browser) -> None:
    made = browser()
    answer = made.get("/console/jobs/ftjob-none")
    assert answer.status_code == 404
    assert "What to do:" in answer.text
    assert made.get("/console/usage?month=nonsense").status_code == 400


def test_static_files_are_only_those_of_the_console(client: TestClient) -> None:
    assert client.get("/console/static/style.css").status_code == 200
    for path in ("../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "/etc/passwd"):
        assert client.get(f"/console/static/{path}").status_code == 404
