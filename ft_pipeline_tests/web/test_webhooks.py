"""Webhooks: managed and verified by the official client, sent once to public addresses, again later when nobody answers."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from ft_pipeline.store.platform.rows import NewJob
from ft_pipeline.store.platform.tables import deliveries
from ft_pipeline.store.platform.webhooks import WAITS_SECONDS
from ft_pipeline.web.delivery import Sender
from ft_pipeline.web.platform import Platform

DONE = ["fine_tuning.job.succeeded", "fine_tuning.job.failed"]


class Receiver(ThreadingHTTPServer):
    """What a tenant runs: keeps what came, answers what it is told to."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.answer = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.came.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.answer)
                self.send_header("Location", "http://169.254.169.254/")
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                """Quiet."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?x=1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def official(platform: Platform, key, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    """The official client on a platform whose tenants are inside."""
    from dataclasses import replace

    from ft_pipeline.web.app import build_api
    from ft_pipeline_tests.web.served import served

    inside = replace(platform, settings=replace(platform.settings, webhooks_private=True))
    with served(build_api(inside)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=key("acme"), max_retries=0, _strict_response_validation=True)


def a_job(platform: Platform, tenant: str = "acme") -> str:
    new = NewJob(
        id=f"ftjob-{secrets.token_hex(12)}", tenant=tenant, line=f"{tenant}/a", tier=10, recipe="{}", recipe_sha256="0" * 64,
        request={}, placement={}, estimate={}, base_model="b", training_file="f", created_by="k",
    )  # fmt: skip
    platform.records.submit(new, admit=lambda _counts: None)
    return new.id


def succeed(platform: Platform, job: str) -> None:
    for status in ("provisioning", "running", "succeeded"):
        platform.records.move(job, status)


def due_now(platform: Platform) -> None:
    with platform.records.write() as db:
        db.execute(sa.update(deliveries).values(next_at="2000"))


def test_the_official_client_makes_an_endpoint_and_verifies_what_it_is_sent(
    platform: Platform, key, receiver: Receiver, official: openai.OpenAI
) -> None:
    made = official.webhooks.create(name="ci", url=receiver.url, event_types=DONE)
    job = a_job(platform)
    succeed(platform, job)
    assert Sender(platform.records, private=True).send_next()
    headers, body = receiver.came[0]
    event = official.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", job)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        official.webhooks.unwrap(body.replace(b"succeeded", b"failed"), headers, secret=made.signing_secret)


def test_an_endpoint_is_listed_changed_tried_and_deleted(receiver: Receiver, official: openai.OpenAI) -> None:
    made = official.webhooks.create(name="ci", url=receiver.url, event_types=DONE)
    assert [w.id for w in official.webhooks.list()] == [made.id]
    assert official.webhooks.retrieve(made.id).event_types == sorted(DONE)
    assert official.webhooks.update(made.id, name="other").name == "other"
    receiver.answer = 418
    assert official.webhooks.test(made.id, event_type="fine_tuning.job.failed").status_code == 418
    assert official.webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        official.webhooks.retrieve(made.id)


def test_after_a_rotation_both_secrets_verify(platform: Platform, receiver: Receiver, official: openai.OpenAI) -> None:
    made = official.webhooks.create(name="ci", url=receiver.url, event_types=DONE)
    rotated = official.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    succeed(platform, a_job(platform))
    Sender(platform.records, private=True).send_next()
    headers, body = receiver.came[0]
    for secret in (made.signing_secret, rotated.signing_secret):
        assert official.webhooks.unwrap(body, headers, secret=secret)


def test_another_tenant_is_told_nothing_and_sees_nothing(
    platform: Platform, as_tenant, receiver: Receiver, official: openai.OpenAI
) -> None:
    made = official.webhooks.create(name="ci", url=receiver.url, event_types=DONE)
    other = as_tenant("other")
    for way, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/test"),
        ("POST", "/rotate_secret"),
        ("GET", "/deliveries"),
    ]:
        body = {"event_type": DONE[0]} if path == "/test" else {}
        answer = other.request(way, f"/v1/webhook_endpoints/{made.id}{path}", json=None if way != "POST" else body)
        assert answer.status_code == 404, (way, path)
    succeed(platform, a_job(platform, "other"))
    assert not Sender(platform.records, private=True).send_next()


def test_a_delivery_is_tried_again_later_and_given_up_in_the_end(
    platform: Platform, receiver: Receiver, official: openai.OpenAI
) -> None:
    made = official.webhooks.create(name="ci", url=receiver.url, event_types=DONE)
    succeed(platform, a_job(platform))
    sender, receiver.answer = Sender(platform.records, private=True), 500
    for _ in range(len(WAITS_SECONDS) + 1):
        assert sender.send_next()
        assert not sender.send_next(), "it waits before the next try"
        due_now(platform)
    assert not sender.send_next()
    row = platform.records.deliveries(made.id)[0]
    assert (row["attempts"], row["last_error"]) == (8, "the endpoint answered 500")
    assert row["given_up_at"]
    assert len({json.loads(body)["id"] for _, body in receiver.came}) == 1, "the same id each time: a receiver knows it"


def test_a_redirect_is_not_followed(platform: Platform, receiver: Receiver, official: openai.OpenAI) -> None:
    official.webhooks.create(name="ci", url=receiver.url, event_types=DONE)
    succeed(platform, a_job(platform))
    receiver.answer = 302
    Sender(platform.records, private=True).send_next()
    assert len(receiver.came) == 1


def test_a_delivery_is_one_senders_at_a_time(platform: Platform, key, receiver: Receiver) -> None:
    key("acme")
    platform.records.add_webhook("acme", name="ci", url=receiver.url, events=DONE, actor="t")
    succeed(platform, a_job(platform))
    assert platform.records.take_delivery() is not None
    assert platform.records.take_delivery() is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x", "https://127.0.0.1/", "https://localhost/", "https://10.0.0.1/", "https://169.254.169.254/latest/meta-data",
        "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://0/", "https://2130706433/", "file:///etc/passwd", "gopher://x.org/",
        "https://user:pw@example.org/", "https://[fe80::1%25eth0]/", "https://", "https://x:99999/", "javascript:alert(1)",
        "https://no-such-host.invalid/",
    ],
)  # fmt: skip
def test_addresses_inside_and_what_is_no_address_are_refused(as_tenant, url: str) -> None:
    body = {"name": "x", "url": url, "event_types": DONE}
    answer = as_tenant("acme").post("/v1/webhook_endpoints", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "webhook_url_refused")


def test_a_cancelled_endpoint_gets_nothing_that_was_owed(platform: Platform, key, receiver: Receiver) -> None:
    key("acme")
    made = platform.records.add_webhook("acme", name="ci", url=receiver.url, events=DONE, actor="t")
    succeed(platform, a_job(platform))
    platform.records.delete_webhook("acme", made.id, actor="t")
    assert not Sender(platform.records, private=True).send_next()
    assert receiver.came == []
