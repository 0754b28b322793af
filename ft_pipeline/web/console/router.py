"""The console's routes: signing in and out, static files, and the pages of jobs, files, models, usage, audit."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from ft_pipeline.errors import FtError
from ft_pipeline.web.auth import Door, address_of
from ft_pipeline.web.console import jobs, models, records
from ft_pipeline.web.console.pages import FOLDER, HEADERS, page
from ft_pipeline.web.console.session import COOKIE, HOURS, SignedOut, checked_form, new_session, signed_in
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.refusals import Refusal


def add_console(app: FastAPI, platform: Platform) -> None:
    """Adds /console to the application; it is not part of the API's description."""
    app.mount("/console/static", StaticFiles(directory=FOLDER / "static"), name="console-static")
    routes = APIRouter(prefix="/console", include_in_schema=False)
    _add_session(routes, platform)
    for part in (jobs, models, records):
        part.add(routes, platform)
    app.include_router(routes)

    @app.exception_handler(SignedOut)
    def to_the_door(_request: Request, error: SignedOut) -> RedirectResponse:
        made = RedirectResponse("/console/login", 303)
        made.set_cookie("ft_told", error.what.replace(",", ""), max_age=10, httponly=True, samesite="strict")
        return made

    _show_errors_as_pages(app)

    @app.get("/", include_in_schema=False)
    def home() -> RedirectResponse:
        return RedirectResponse("/console", 303)

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> FileResponse:
        return FileResponse(FOLDER / "static" / "icon.svg", media_type="image/svg+xml")


def _show_errors_as_pages(app: FastAPI) -> None:
    """Below /console an error is a page with the three sentences; everywhere else it stays what the API answers."""
    answer: Any = app.exception_handlers[FtError]

    @app.exception_handler(FtError)
    async def refused(request: Request, error: FtError) -> Response:
        made = await to_thread.run_sync(answer, request, error)
        if not request.url.path.startswith("/console"):
            return made
        caller = getattr(request.state, "caller", None)
        return page(request, "refused.html", caller=caller, status=made.status_code, error=error)


def _add_session(routes: APIRouter, platform: Platform) -> None:
    @routes.get("/login")
    def login(request: Request) -> HTMLResponse:
        return page(request, "login.html", caller=None, told=request.cookies.get("ft_told", ""))

    @routes.post("/login")
    def sign_in(request: Request, key: Annotated[str, Form(max_length=200)]) -> Response:
        door: Door = request.app.state.door
        try:
            caller = door.caller(key.strip(), address=address_of(request))
        except Refusal as error:
            return page(request, "login.html", caller=None, status=error.status, told=error.what)
        made = RedirectResponse("/console", 303, headers=HEADERS)
        made.set_cookie(
            COOKIE, new_session(platform, caller), max_age=HOURS * 3600, httponly=True, samesite="strict",
            secure=request.url.scheme == "https", path="/console",
        )  # fmt: skip
        return made

    @routes.post("/logout")
    def sign_out(_caller: Annotated[Caller, Depends(checked_form)]) -> RedirectResponse:
        made = RedirectResponse("/console/login", 303)
        made.delete_cookie(COOKIE, path="/console")
        return made

    @routes.get("")
    def first(_caller: Annotated[Caller, Depends(signed_in)]) -> RedirectResponse:
        return RedirectResponse("/console/jobs", 303)
