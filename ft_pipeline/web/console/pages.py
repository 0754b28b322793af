"""How a page is made: a template, who is signed in, and what the house says of times, money and digests."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse

from ft_pipeline.register.graph import size
from ft_pipeline.web.console.session import form_token
from ft_pipeline.web.platform import Caller

FOLDER = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Styles inside an SVG are inline; scripts never are."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def short_time(moment: str | None) -> str:
    """`2026-11-26 07:15` of an ISO time."""
    return moment[:16].replace("T", " ") if moment else ""


def ago(moment: str | None) -> str:
    """`3 min ago`, `in 2 h`: what a person wants to know first."""
    if not moment:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    length = next((f"{abs(seconds) / s:.0f} {u}" for u, s in (("d", 86400), ("h", 3600), ("min", 60)) if abs(seconds) >= s), f"{abs(seconds):.0f} s")  # fmt: skip
    return f"{length} ago" if seconds >= 0 else f"in {length}"


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(time=short_time, ago=ago, size=size)
    return made


ENVIRONMENT = _environment()


def page(request: Request, name: str, *, caller: Caller | None, status: int = 200, **facts: Any) -> HTMLResponse:
    """The template with the facts. Everything that is not markup is escaped by the template engine."""
    text = ENVIRONMENT.get_template(name).render(
        caller=caller, token=form_token(request) if caller else "", path=request.url.path, **facts
    )
    return HTMLResponse(text, status, headers=HEADERS)
