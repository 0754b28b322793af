"""What stands around every request: ids, headers, the access log, bodies that are too large or too slow, failures."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from ft_pipeline.web.frame import Frame, FrameLimits
from ft_pipeline.web.refusals import Absent


@pytest.fixture
def lines():
    """What the access log says."""
    heard: list[dict] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(json.loads(record.getMessage()))

    logger, ear = logging.getLogger("ft_pipeline.access"), Ear()
    logger.addHandler(ear)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield heard
    logger.removeHandler(ear)
    logger.setLevel(before)


def test_an_answer_has_an_id_and_says_nothing_of_the_server(client, lines):
    answer = client.get("/v1/platform/me?secret=1", headers={"Authorization": "Bearer sk-ft-secret"})
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["openai-processing-ms"]) < 10_000
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    (line,) = lines
    assert (line["status"], line["path"], line["tenant"]) == (401, "/v1/platform/me", None)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in json.dumps(line)


@pytest.mark.parametrize(
    ("given", "echoed"), [("trace-1.2_3", True), ("a" * 129, False), ("a b", False), ("{x}", False)]
)
def test_an_id_that_is_given_is_echoed_when_it_is_one(client, given, echoed):
    answer = client.get("/health", headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) == echoed


def test_the_log_says_who_called_and_the_answer_what_is_left(as_tenant, lines):
    answer = as_tenant("acme", requests_a_minute=10).get("/v1/platform/me")
    assert answer.headers["x-ratelimit-limit-requests"] == "10"
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert (lines[-1]["tenant"], lines[-1]["key"]) == ("acme", answer.json()["key"]["prefix"])


def small(**limits: object) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Frame, limits=FrameLimits(**limits))

    @app.post("/")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.get("/fails")
    def fails() -> None:
        raise RuntimeError("a secret of ours")

    return app


def test_a_body_that_is_too_large_is_refused_said_or_found():
    client = TestClient(small(max_body_bytes=10))
    assert client.post("/", content=b"x" * 10).json() == 10
    for content in (b"x" * 11, iter([b"x" * 6, b"x" * 6])):
        refused = client.post("/", content=content)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        assert refused.headers["connection"] == "close"


def sent_to(app: FastAPI, *messages: dict, wait_seconds: float = 0.0) -> list[dict]:
    """The messages of an answer to a body in pieces, as a server hands them on."""
    sent, coming = [], list(messages)

    async def receive() -> dict:
        if not coming:
            await asyncio.sleep(60)
        await asyncio.sleep(wait_seconds)
        return coming.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [],
        "query_string": b"",
        "client": ("1.2.3.4", 5),
    }
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_body_that_comes_too_slowly_gives_its_place_back():
    piece = {"type": "http.request", "body": b"x", "more_body": True}
    app = small(body_seconds=0.2)
    sent = sent_to(app, *[piece] * 50, wait_seconds=0.05)
    assert sent[0]["status"] == 408 and b"slow_body" in sent[1]["body"]


def test_half_a_body_is_never_taken_for_a_whole_one(lines):
    piece = {"type": "http.request", "body": b"x", "more_body": True}
    assert sent_to(small(), piece, {"type": "http.disconnect"}) == []
    assert lines[-1]["status"] == 499


def test_beyond_the_places_of_a_process_one_is_told_to_come_back():
    refused = TestClient(small(max_in_flight=0)).post("/", content=b"x")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_bodies_of_all_requests_together_have_a_limit():
    app = small(held_bytes=0)
    piece = {"type": "http.request", "body": b"x", "more_body": True}
    waiting = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "client": None}

    async def slowly() -> dict:
        slowly.asked = getattr(slowly, "asked", 0) + 1
        await asyncio.sleep(0 if slowly.asked == 1 else 60)
        return piece

    async def both() -> int:
        first = asyncio.create_task(app(waiting, slowly, None))
        await asyncio.sleep(0.05)
        sent = []

        async def send(message: dict) -> None:
            sent.append(message)

        await app(dict(waiting), slowly, send)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return sent[0]["status"]

    assert asyncio.run(both()) == 503
    assert TestClient(app).post("/", content=b"x").json() == 1


def test_a_failure_of_ours_is_a_500_that_says_nothing_but_its_id(caplog):
    answer = TestClient(small(), raise_server_exceptions=False).get("/fails", headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in answer.text and "mine" in answer.text
    assert "a secret of ours" in caplog.text


def test_an_error_of_ours_has_openais_shape(client):
    @client.app.get("/gone")
    def gone() -> None:
        raise Absent("no file file-1", code="not_found", param="file", cure="list them")

    answer = client.get("/gone")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "no file file-1\nCure: list them", "type": "invalid_request_error", "param": "file", "code": "not_found",
    }  # fmt: skip
    assert client.get("/v1/nowhere").json()["error"]["message"] == "GET /v1/nowhere: Not Found"
