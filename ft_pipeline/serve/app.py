"""The OpenAI-compatible HTTP API over any Engine: chat, completions, models, health, metrics. Knows no torch and no catalog."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ft_pipeline.errors import FtError, NotFoundError, UserError
from ft_pipeline.serve.engine import BadRequest, Engine, Piece, Served
from ft_pipeline.serve.schema import ChatBody, CompletionBody, Sampling

DONE = "data: [DONE]\n\n"


def build_app(engine: Engine, *, facts: Mapping[str, str] | None = None) -> FastAPI:
    """The application. `facts` go into `/healthz`."""
    app = FastAPI(title="ft-pipeline", docs_url="/docs", redoc_url=None)
    counters = Counters()
    _add_errors(app, counters)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {"status": "ok", "models": [m.id for m in engine.models()], **(facts or {})}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(counters.text(engine.counters()), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        rows = [_model(served, name) for served in engine.models() for name in _listed(served)]
        return {"object": "list", "data": rows}

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        return _model(engine.resolve(name), name)

    @app.post("/v1/chat/completions", response_model=None)
    def chat(body: ChatBody) -> Response:
        return _answer(engine, body, shape=ChatShape(body.model), counters=counters)

    @app.post("/v1/completions", response_model=None)
    def completions(body: CompletionBody) -> Response:
        return _answer(engine, body, shape=TextShape(body.model), counters=counters)

    return app


class Counters:
    """Requests, tokens and errors since the start, for Prometheus."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()

    def add(self, name: str, number: float = 1) -> None:
        """Adds to a counter; `name` may carry labels."""
        with self._lock:
            self._numbers[name] += number  # type: ignore[assignment]

    def text(self, more: Mapping[str, float]) -> str:
        """Prometheus text format."""
        with self._lock:
            rows = {**self._numbers, **more}
        return "".join(f"{name} {value:g}\n" for name, value in sorted(rows.items()))


class ChatShape:
    """How an answer looks at /v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str) -> None:
        self.frame = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def opening(self) -> dict[str, Any] | None:
        """The first chunk, before any text."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, piece: Piece) -> dict[str, Any]:
        """One chunk."""
        return self._chunk({"content": piece.text} if piece.text else {}, piece.finish)

    def full(self, text: str, last: Piece) -> dict[str, Any]:
        """The whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish, "logprobs": None}
        return {**self.frame, "object": self.whole, "choices": [choice], "usage": usage(last)}

    def counts(self, last: Piece) -> dict[str, Any]:
        """The chunk that `include_usage` asks for."""
        return {**self.frame, "object": self.chunk, "choices": [], "usage": usage(last)}

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self.frame, "object": self.chunk, "choices": [choice]}


class TextShape(ChatShape):
    """How an answer looks at /v1/completions."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def opening(self) -> None:
        """Nothing comes before the text."""

    def piece(self, piece: Piece) -> dict[str, Any]:
        """One chunk."""
        return {**self.frame, "object": self.chunk, "choices": [self._choice(piece.text, piece.finish)]}

    def full(self, text: str, last: Piece) -> dict[str, Any]:
        """The whole answer."""
        return {
            **self.frame,
            "object": self.whole,
            "choices": [self._choice(text, last.finish)],
            "usage": usage(last),
        }

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}


def usage(last: Piece) -> dict[str, int]:
    """Token counts of an answer."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _answer(engine: Engine, body: Any, *, shape: ChatShape, counters: Counters) -> Response:
    pieces = engine.answer(body.generation()).pieces
    if body.stream:
        return StreamingResponse(_events(pieces, body, shape=shape, counters=counters), media_type="text/event-stream")
    texts, last = [], Piece(text="")
    for last in pieces:
        texts.append(last.text)
    _count(counters, body, last)
    return JSONResponse(shape.full("".join(texts), last))


def _events(pieces: Iterator[Piece], body: Sampling, *, shape: ChatShape, counters: Counters) -> Iterator[str]:
    """Server-sent events. An error after the first byte can only be an event: the status is gone."""
    last = Piece(text="")
    try:
        if opening := shape.opening():
            yield _event(opening)
        for last in pieces:
            yield _event(shape.piece(last))
    except (FtError, RuntimeError) as error:
        counters.add('ft_errors_total{status="500"}')
        yield _event(error_body(str(error), kind="server_error"))
        return
    if body.stream_options and body.stream_options.include_usage:
        yield _event(shape.counts(last))
    _count(counters, body, last)
    yield DONE


def _event(chunk: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _count(counters: Counters, body: Sampling, last: Piece) -> None:
    model = body.model.replace("\\", "").replace('"', "").replace("\n", "")
    counters.add(f'ft_requests_total{{model="{model}"}}')
    counters.add("ft_prompt_tokens_total", last.prompt_tokens)
    counters.add("ft_completion_tokens_total", last.completion_tokens)


def _model(served: Served, name: str) -> dict[str, Any]:
    platform = {
        "version": served.id,
        "stage": served.stage,
        "base": served.base_digest,
        "adapter": served.adapter_digest,
    }
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": served.owned_by,
        "platform": platform,
    }


def _listed(served: Served) -> list[str]:
    """The names that a list shows: the version and the bare line, not every alias."""
    return [served.id, *(a for a in served.aliases if ":" not in a)]


def _add_errors(app: FastAPI, counters: Counters) -> None:
    """Every error in OpenAI's shape: the official client turns the status into its exception."""

    def reply(status: int, body: dict[str, Any]) -> JSONResponse:
        counters.add(f'ft_errors_total{{status="{status}"}}')
        return JSONResponse(body, status_code=status)

    @app.exception_handler(FtError)
    def refused(_request: Request, error: FtError) -> JSONResponse:
        if isinstance(error, NotFoundError):
            return reply(
                404, error_body(str(error), kind="invalid_request_error", param="model", code="model_not_found")
            )
        if isinstance(error, BadRequest):
            return reply(400, error_body(str(error), kind="invalid_request_error", param=error.param, code=error.code))
        status = 400 if isinstance(error, UserError) else 500
        return reply(status, error_body(str(error), kind="server_error" if status == 500 else "invalid_request_error"))

    @app.exception_handler(RequestValidationError)
    def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        text = f"{param or 'body'}: {first['msg']}"
        return reply(400, error_body(text, kind="invalid_request_error", param=param, code=first["type"]))

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}"
        return reply(error.status_code, error_body(text, kind="invalid_request_error"))
