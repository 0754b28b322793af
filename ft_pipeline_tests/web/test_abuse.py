"""Abuse of the whole API at once: another tenant's ids on every route, no key, tricks in every name, bodies that are too much or never end."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ft_pipeline.store.catalog import NewModel
from ft_pipeline.web.app import build_api
from ft_pipeline.web.auth import Door
from ft_pipeline.web.platform import Platform
from ft_pipeline_tests.web.served import served
from ft_pipeline_tests.web.test_console import a_job

CHAT = {"model": "acme/support", "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_1"]}},
    "/v1/uploads/{upload_id}/parts": {"files": {"data": b"x"}},
    "/v1/models/{model_id}/deploy": {"json": {"stage": "production"}},
    "/v1/models/{model_id}/approve": {"json": {"reason": "mine now"}},
    "/v1/models/{model_id}/rollback": {"json": {"reason": "mine now"}},
    "/v1/webhook_endpoints/{webhook_id}": {"json": {"name": "mine now"}},
    "/v1/webhook_endpoints/{webhook_id}/test": {"json": {"event_type": "fine_tuning.job.failed"}},
    "/v1/webhook_endpoints/{webhook_id}/rotate_secret": {"json": {}},
}
"""What a POST has to say to be understood; the rest needs no body."""
TRICKS = [
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "a'; DROP TABLE jobs; --", '" OR 1=1 --', "\u202egnp.exe", "\ufeff", "\U0001f4a9",
    "a" * 5000, "{{7*7}}", "${jndi:ldap://x}", "<script>alert(1)</script>", "acme/support@999999999999999999999", "-1", "0x7f", "%ff%fe",
    "ftjob-" + "0" * 24, "file-" + "0" * 24, "\u0661\u0662", "a//b", " ",
]  # fmt: skip


@dataclass(frozen=True)
class Owned:
    """One thing of every kind that belongs to acme, by the name of its path parameter."""

    ids: dict[str, str]


@pytest.fixture
def owned(platform: Platform, as_tenant: Any) -> Owned:
    acme = as_tenant("acme", requests_a_minute=None)
    row = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    file = acme.post("/v1/files", files={"file": ("rows.jsonl", row)}, data={"purpose": "fine-tune"}).json()["id"]
    upload = acme.post(
        "/v1/uploads", json={"filename": "r.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
    ).json()["id"]
    hook = platform.records.add_webhook("acme", name="x", url="https://example.org", events=[], actor="t")
    digest = "a" * 64
    model = platform.catalog.register(
        NewModel(
            tenant="acme", name="support", base_digest=digest, dataset_digest=digest, adapter_digest=digest, report_digest=digest,
            recipe_sha256=digest, run_id="r", code="c", lora_rank=8,
        )
    )  # fmt: skip
    ids = {"file_id": file, "upload_id": upload, "job_id": a_job(platform), "webhook_id": hook.id}
    return Owned({**ids, "model_id": model.label})


def operations(client: TestClient) -> Iterator[tuple[str, str]]:
    """(method, path template) of everything that the description names."""
    for path, ways in client.get("/openapi.json").json()["paths"].items():
        yield from ((way.upper(), path) for way in ways)


def test_without_a_key_nothing_answers_but_health(client: TestClient) -> None:
    """Every route, also those that somebody adds tomorrow. The clock runs: thirty wrong keys a minute would be told to wait."""
    client.app.state.door = Door(client.app.state.platform, clock=map(float, itertools.count(step=60)).__next__)
    for way, path in operations(client):
        answer = client.request(way, path.replace("{", "").replace("}", ""), **BODIES.get(path, {}))
        expected = 200 if path == "/health" else 401
        assert answer.status_code == expected, (way, path, answer.text[:200])


def test_another_tenants_ids_do_not_exist_on_any_route(client: TestClient, as_tenant: Any, owned: Owned) -> None:
    """The same answer as for an id that nobody has, so that nothing is learnt from it."""
    stranger = as_tenant("stranger", requests_a_minute=None)
    tried = 0
    for way, path in operations(client):
        name = next((n for n in owned.ids if f"{{{n}}}" in path), None)
        if name is None:
            assert "{" not in path, f"{path} has a parameter that this test does not know"
            continue
        body = BODIES.get(path, {}) if way == "POST" else {}
        theirs = stranger.request(way, path.replace(f"{{{name}}}", owned.ids[name]), **body)
        assert theirs.status_code == 404, (way, path, theirs.status_code, theirs.text[:300])
        tried += 1
    assert tried > 25


def test_what_acme_has_is_still_acmes_afterwards(
    platform: Platform, client: TestClient, as_tenant: Any, owned: Owned
) -> None:
    test_another_tenants_ids_do_not_exist_on_any_route(client, as_tenant, owned)
    acme = as_tenant("acme")
    assert acme.get(f"/v1/files/{owned.ids['file_id']}").status_code == 200
    assert acme.get(f"/v1/fine_tuning/jobs/{owned.ids['job_id']}/events").status_code == 200
    assert platform.catalog.history(owned.ids["model_id"]) == []
    assert acme.get(f"/v1/webhook_endpoints/{owned.ids['webhook_id']}").json()["name"] == "x"


@pytest.mark.slow
def test_tricks_in_a_name_are_names_that_nobody_has(client: TestClient, as_tenant: Any) -> None:
    asking = as_tenant("acme", requests_a_minute=None)
    routes = [(way, path) for way, path in operations(client) if "{" in path]
    for (way, path), trick in itertools.product(routes, TRICKS):
        before, _, rest = path.partition("{")
        body = BODIES.get(path, {}) if way == "POST" else {}
        answer = asking.request(way, before + trick + rest.partition("}")[2], **body)
        assert 400 <= answer.status_code < 500, (way, path, trick[:40], answer.status_code)


def test_tricks_in_a_request_are_refused_with_a_reason(as_tenant: Any, owned: Owned) -> None:
    asking = as_tenant("acme", requests_a_minute=None)
    good = {"model": "tiny-docs", "training_file": owned.ids["file_id"]}
    for field, trick in itertools.product(("model", "training_file", "validation_file"), TRICKS):
        answer = asking.post("/v1/fine_tuning/jobs", json={**good, field: trick})
        assert 400 <= answer.status_code < 500, (field, trick[:40], answer.status_code)
        assert answer.json()["error"]["message"]
    for query, trick in itertools.product(("after", "limit"), TRICKS):
        answer = asking.get("/v1/fine_tuning/jobs", params={query: trick})
        assert answer.status_code in (400, 404), (query, trick[:40], answer.status_code)


def test_the_database_is_still_there_after_all_of_it(platform: Platform, as_tenant: Any, owned: Owned) -> None:
    asking = as_tenant("acme", requests_a_minute=None)
    for trick in TRICKS:
        asking.get("/v1/fine_tuning/jobs", params={"after": trick})
        asking.post("/v1/chat/completions", json={**CHAT, "model": trick})
    assert platform.records.job(owned.ids["job_id"]).status == "queued"
    assert platform.records.verify_audit()[0] > 0


def test_a_body_that_is_too_large_is_refused_before_it_is_read(platform: Platform, key: Any) -> None:
    with served(build_api(platform)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            head = f"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key('acme')}\r\nContent-Length: 99999999999\r\n\r\n"
            line.sendall(head.encode() + b"{")
            assert b" 413 " in line.recv(200)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET /" + b"a" * 70_000, b"\r\n\r\n\r\n"]
)
def test_what_is_no_http_ends_the_connection_and_nothing_else(platform: Platform, sent: bytes) -> None:
    with served(build_api(platform)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as line:
            line.sendall(sent)
            time.sleep(0.1)
        with socket.create_connection((host, int(port)), timeout=5) as line:
            line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b" 200 " in line.recv(200)
