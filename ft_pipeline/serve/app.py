"""The OpenAI-compatible HTTP API over any Engine: chat, completions, models, health, metrics. Knows no torch and no catalog."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ft_pipeline.errors import FtError, NotFoundError, UserError
from ft_pipeline.serve.engine import Answer, BadRequest, Busy, Engine, Served
from ft_pipeline.serve.intake import Intake
from ft_pipeline.serve.limits import Limits
from ft_pipeline.serve.metrics import Metrics
from ft_pipeline.serve.schema import ChatBody, CompletionBody, Sampling
from ft_pipeline.serve.shapes import ChatShape, TextShape, error_body, event, events, model_body

OTHER_THREADS = 16
"""For lists, metrics and health beside the requests that wait for tokens, each of which holds a thread."""


def build_app(engine: Engine, *, facts: Mapping[str, str] | None = None, limits: Limits | None = None) -> FastAPI:
    """The application. `facts` go into `/health`."""
    limits, metrics = limits or Limits(), Metrics()

    @asynccontextmanager
    async def threads(_app: FastAPI) -> AsyncIterator[None]:
        # 40 by default: the 41st answer would wait for a thread, and so would the health check
        to_thread.current_default_thread_limiter().total_tokens = limits.max_in_flight + OTHER_THREADS
        yield

    app = FastAPI(title="ft-pipeline", docs_url="/docs", redoc_url=None, lifespan=threads)
    app.add_middleware(Intake, limits=limits, refused=metrics.refused)
    _add_errors(app, metrics)
    _add_facts(app, engine, metrics, facts=facts or {})

    @app.post("/v1/chat/completions", response_model=None)
    def chat(body: ChatBody) -> Response:
        answer = engine.answer(body.generation())
        return _reply(answer, body, shape=ChatShape(body.model, answer.served), metrics=metrics)

    @app.post("/v1/completions", response_model=None)
    def completions(body: CompletionBody) -> Response:
        answer = engine.answer(body.generation())
        return _reply(answer, body, shape=TextShape(body.model, answer.served), metrics=metrics)

    return app


def _add_facts(app: FastAPI, engine: Engine, metrics: Metrics, *, facts: Mapping[str, str]) -> None:
    """What can be asked about the server."""

    @app.get("/health")
    @app.get("/healthz")
    def health() -> JSONResponse:
        trouble = engine.trouble()
        body = {"status": trouble or "ok", "models": [m.id for m in engine.models()], **facts}
        return JSONResponse(body, status_code=503 if trouble else 200)

    @app.get("/metrics")
    def counted() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(engine.counters()), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        rows = [model_body(served, name) for served in engine.models() for name in _listed(served)]
        return {"object": "list", "data": rows}

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        return model_body(engine.resolve(name), name)


def _reply(answer: Answer, body: Sampling, *, shape: ChatShape, metrics: Metrics) -> Response:
    pieces = metrics.watched(answer.served, answer.pieces)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        told = _told(events(pieces, shape, with_usage=with_usage), metrics)
        return StreamingResponse(told, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    given = list(pieces)
    noted = tuple(token for piece in given for token in piece.logprobs)
    return JSONResponse(shape.full("".join(piece.text for piece in given), replace(given[-1], logprobs=noted)))


def _told(stream: Iterator[str], metrics: Metrics) -> Iterator[str]:
    """The same events. An error after the first byte can only be an event: the status is gone."""
    try:
        yield from stream
    except (FtError, RuntimeError) as error:
        metrics.refused(500)
        yield event(error_body(str(error), kind="server_error"))


def _listed(served: Served) -> list[str]:
    """The names that a list shows: the version and the bare line, not every alias."""
    return [served.id, *(a for a in served.aliases if ":" not in a)]


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    """Every error in OpenAI's shape: the official client turns the status into its exception."""

    def reply(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
        metrics.refused(status)
        return JSONResponse(body, status_code=status, headers=headers)

    @app.exception_handler(FtError)
    def refused(_request: Request, error: FtError) -> JSONResponse:
        return reply(*_refusal(error))

    @app.exception_handler(RequestValidationError)
    def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        text = f"{param or 'body'}: {first['msg']}"
        if first["type"] == "extra_forbidden":
            text = (
                f"{param}: this server does not know the field, and an answer that ignores it would be another answer"
            )
        return reply(400, error_body(text, kind="invalid_request_error", param=param, code=first["type"]))

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}"
        return reply(error.status_code, error_body(text, kind="invalid_request_error"))

    @app.exception_handler(RuntimeError)
    def broken(_request: Request, error: RuntimeError) -> JSONResponse:
        return reply(500, error_body(str(error), kind="server_error"))


def _refusal(error: FtError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error of ours."""
    wrong, text = "invalid_request_error", str(error)
    match error:
        case NotFoundError():
            return 404, error_body(text, kind=wrong, param="model", code="model_not_found"), {}
        case BadRequest():
            return 400, error_body(text, kind=wrong, param=error.param, code=error.code), {}
        case Busy():
            headers = {"Retry-After": str(error.retry_after_seconds)}
            return 429, error_body(text, kind="rate_limit_error", code="queue_full"), headers
        case UserError():
            return 400, error_body(text, kind=wrong), {}
    return 500, error_body(text, kind="server_error"), {}
