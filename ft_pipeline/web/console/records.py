"""Pages of files with their data-set report, of usage, and of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from ft_pipeline.billing.budget import standing
from ft_pipeline.billing.meter import total
from ft_pipeline.billing.month import month_of
from ft_pipeline.billing.picture import month_svg
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.store.catalog_database import now
from ft_pipeline.web.console.pages import page
from ft_pipeline.web.console.pictures import length_bars
from ft_pipeline.web.console.session import require_role, signed_in
from ft_pipeline.web.platform import Caller, Platform

SHOWN = 100
SignedIn = Annotated[Caller, Depends(signed_in)]


def add(routes: APIRouter, platform: Platform) -> None:
    """Adds the routes."""
    records = platform.records

    @routes.get("/files")
    def files(request: Request, caller: SignedIn) -> HTMLResponse:
        return page(request, "files.html", caller=caller, files=records.find_files(tenant=caller.tenant, limit=SHOWN))

    @routes.get("/files/{file_id}")
    def file(request: Request, caller: SignedIn, file_id: str) -> HTMLResponse:
        found = records.file(file_id, tenant=caller.tenant)
        report = found.report or {}
        bars = length_bars(report.get("length_histogram", []))
        return page(request, "file.html", caller=caller, file=found, report=report, bars=bars)

    @routes.get("/usage")
    def usage(request: Request, caller: SignedIn, month: str = "") -> HTMLResponse:
        moment, limits = now(), records.tenant(caller.tenant).limits
        prices = read_prices(platform.settings.prices)
        found = month_of(records, caller.tenant, month=month or moment[:7], prices=prices, moment=moment)
        bills = [(bill, total(bill.charges)) for bill in found.jobs]
        facts = {"month": found, "picture": month_svg(found), "standing": standing(found, limits), "limits": limits}
        return page(request, "usage.html", caller=caller, bills=bills, **facts)

    @routes.get("/audit")
    def audit(request: Request, caller: SignedIn) -> HTMLResponse:
        require_role(caller, "audit")
        lines = records.audit_lines(tenant=caller.tenant, limit=SHOWN)
        return page(request, "audit.html", caller=caller, lines=lines)
