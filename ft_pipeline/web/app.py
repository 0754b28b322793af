"""The platform API: one FastAPI application over the same rooms. Each file beside this one gives the routes of one noun."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from ft_pipeline.errors import FtError, NotFoundError, StorageError, UserError
from ft_pipeline.serve.gateway.authority import Refused
from ft_pipeline.serve.shapes import error_body
from ft_pipeline.store.platform.jobs import IdempotencyMismatch
from ft_pipeline.web import aliases, datasets, files, fine_tuning, me, models, uploads, usage, webhooks
from ft_pipeline.web.auth import Door
from ft_pipeline.web.console.router import add_console
from ft_pipeline.web.frame import Frame
from ft_pipeline.web.inference import add_inference
from ft_pipeline.web.platform import Platform
from ft_pipeline.web.refusals import DOCUMENTED, Refusal
from ft_pipeline.web.validation import Validator

WRONG = "invalid_request_error"
THREADS = 64
"""For routes, which wait for the database; streams hold none."""


def build_api(platform: Platform, *, with_server: bool = False) -> FastAPI:
    """The application. `app.state.stopping` is set when the process is told to end; `app.state.lives` are open while it runs."""
    app = FastAPI(
        title="ft-pipeline platform",
        docs_url="/docs",
        redoc_url=None,
        lifespan=_life,
        responses=DOCUMENTED,
        generate_unique_id_function=_operation_id,
    )
    app.state.platform, app.state.door = platform, Door(platform)
    app.state.stopping = threading.Event()
    app.add_middleware(Frame)
    _add_errors(app)
    validator = Validator(platform)
    app.state.lives = [add_inference(app, platform, with_server=with_server), validator.living]
    app.include_router(datasets.router(platform, validator))
    app.include_router(files.router(platform, validator))
    app.include_router(uploads.router(platform, validator))
    app.include_router(fine_tuning.router(platform))
    app.include_router(aliases.router(platform))
    app.include_router(models.router(platform))
    app.include_router(me.router(platform))
    app.include_router(usage.router(platform))
    app.include_router(webhooks.router(platform))
    add_console(app, platform)

    @app.get("/health")
    def health() -> dict[str, str]:
        platform.records.counts()
        return {"status": "ok"}

    return app


def _operation_id(route: APIRoute) -> str:
    """Of the description: /v1/fine_tuning and /v1/fine-tuning are two, which FastAPI's own ids make one."""
    method = min(route.methods or {"GET"}).lower()
    return re.sub(r"[^a-z0-9-]+", "_", f"{method}_{route.path_format}".lower()).strip("_")


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    async with AsyncExitStack() as stack:
        for life in app.state.lives:
            await stack.enter_async_context(life())
        yield


def _add_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape: the official client turns the status into its exception."""

    @app.exception_handler(FtError)
    def refused(_request: Request, error: FtError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return JSONResponse(
            error_body(f"{param or 'body'}: {first['msg']}", kind=WRONG, param=param, code=first["type"]), 400
        )

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(error_body(text, kind=WRONG), error.status_code, headers=error.headers)


def refusal(error: FtError) -> JSONResponse:
    """The answer to an error of ours."""
    text = str(error)
    match error:
        case Refusal():
            body = error_body(text, kind=error.kind, param=error.param, code=error.code)
            return JSONResponse(body, error.status, headers=error.headers)
        case Refused():
            body = error_body(text, kind=error.kind, param=error.param, code=error.code)
            wait = error.retry_after_seconds
            return JSONResponse(body, error.status, headers={"Retry-After": str(wait)} if wait else None)
        case IdempotencyMismatch():
            return JSONResponse(error_body(text, kind=WRONG, code="idempotency_mismatch"), 422)
        case NotFoundError():
            return JSONResponse(error_body(text, kind=WRONG, code="not_found"), 404)
        case StorageError():
            return JSONResponse(
                error_body(text, kind="server_error", code="storage"), 503, headers={"Retry-After": "5"}
            )
        case UserError():
            return JSONResponse(error_body(text, kind=WRONG), 400)
    return JSONResponse(error_body(text, kind="server_error"), 500)
