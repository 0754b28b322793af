"""Pages of jobs: the list, one job with its live curve, events and costs, and the buttons to cancel, pause and resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from ft_pipeline.billing.meter import PURPOSES, charges, total
from ft_pipeline.errors import UserError
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.rows import ENDED, LIVE, TrainingJob
from ft_pipeline.web.console.pages import page
from ft_pipeline.web.console.pictures import loss_curve
from ft_pipeline.web.console.session import checked_form, require_role, signed_in
from ft_pipeline.web.platform import Caller, Platform

SHOWN, EVENTS = 100, 60
SignedIn = Annotated[Caller, Depends(signed_in)]
Pressed = Annotated[Caller, Depends(checked_form)]
GROUPS = {"all": (), "live": LIVE, "waiting": ("queued", "paused"), "ended": ENDED}


def add(routes: APIRouter, platform: Platform) -> None:
    """Adds the routes. A page's part that changes while a job runs is also served alone, for live.js."""
    records = platform.records

    @routes.get("/jobs")
    def jobs(request: Request, caller: SignedIn, *, show: str = "all", part: str = "") -> HTMLResponse:
        statuses: Any = GROUPS.get(show, ())
        found = records.find_jobs(tenant=caller.tenant, statuses=statuses, limit=SHOWN)
        facts = {"jobs": found, "show": show, "groups": list(GROUPS), "counts": records.counts(caller.tenant)}
        return page(request, "jobs_part.html" if part else "jobs.html", caller=caller, **facts)

    @routes.get("/jobs/{job_id}")
    def job(request: Request, caller: SignedIn, *, job_id: str, part: str = "") -> HTMLResponse:
        found = records.job(job_id, tenant=caller.tenant)
        name = "job_part.html" if part else "job.html"
        return page(request, name, caller=caller, **_facts(platform, found))

    _add_buttons(routes, platform)


def _add_buttons(routes: APIRouter, platform: Platform) -> None:
    records = platform.records
    acts: dict[str, Callable[[str, Caller], object]] = {
        "cancel": lambda job_id, caller: records.wish(job_id, "cancel", tenant=caller.tenant),
        "pause": lambda job_id, caller: records.wish(job_id, "pause", tenant=caller.tenant),
        "resume": lambda job_id, caller: _resume(platform, job_id, caller),
    }

    @routes.post("/jobs/{job_id}")
    def act(job_id: str, caller: Pressed, act: Annotated[str, Form()]) -> RedirectResponse:
        require_role(caller, "submit")
        if act not in acts:
            raise UserError(f"no button {act!r}")
        records.job(job_id, tenant=caller.tenant)
        acts[act](job_id, caller)
        records.audit(actor=caller.actor, tenant=caller.tenant, action=f"job.{act}", subject=job_id)
        return RedirectResponse(f"/console/jobs/{job_id}", 303)


def _resume(platform: Platform, job_id: str, caller: Caller) -> None:
    if platform.records.move(job_id, "queued", only_from=["paused"], message=f"resumed by {caller.actor}") is None:
        raise UserError(f"{job_id} is not paused", cure="only a paused job can be resumed")


def _facts(platform: Platform, job: TrainingJob) -> dict[str, Any]:
    records, moment = platform.records, now()
    prices = read_prices(platform.settings.prices)
    made = charges(records.intervals(of_jobs=[job.id]), records.steps_of([job.id]), prices=prices, until=moment)
    return {
        "job": job,
        "curve": loss_curve(records.points(job.id), planned=job.planned_steps),
        "events": records.events(job.id, limit=EVENTS),
        "checkpoints": records.checkpoints(job.id, limit=20),
        "costs": [(p, sum(c.seconds for c in made if c.purpose == p), total(made, p)) for p in PURPOSES],
        "spent": total(made),
        "currency": prices.currency,
        "recipe": json.dumps(json.loads(job.recipe), indent=1, sort_keys=True),
    }
