"""A tenant is told of a verdict over real HTTP; an endpoint that is dead, slow or refuses stops nothing and is told in the log."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from ft_pipeline import settings as settings_module
from ft_pipeline.errors import UserError
from ft_pipeline.gate import notify as notify_module
from ft_pipeline.gate.notify import notice_of, notify, signature
from ft_pipeline_tests.gate import reports

DIGEST = "ab" * 32


@pytest.fixture
def endpoint():
    """A server of this process. `answers`: status codes in order, the last one for ever; `got`: (headers, body) of each POST."""

    class Endpoint(BaseHTTPRequestHandler):
        answers: ClassVar[list[int]] = [200]
        got: ClassVar[list[tuple[dict, bytes]]] = []
        wait_seconds = 0.0

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            type(self).got.append((dict(self.headers), body))
            time.sleep(self.wait_seconds)
            self.send_response(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    Endpoint.answers, Endpoint.got = [200], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    Endpoint.url = f"http://127.0.0.1:{server.server_port}/secret/path"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield Endpoint
    server.shutdown()
    server.server_close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(notify_module, "WAIT_SECONDS", (0.01, 0.02))


@pytest.fixture
def notice():
    report, _ = reports.failed()
    return notice_of(report, model_line="acme/router", place="/reports/report.html", digest=DIGEST)


@pytest.fixture
def heard():
    said = []

    def listener(message):
        said.append(message.text)

    return said, listener


def to(home, endpoint, kind="webhook", secret=None):
    return replace(home, notify_url=endpoint.url, notify_kind=kind, notify_secret=secret)


def test_by_default_it_is_in_the_log(home, notice, heard) -> None:
    said, listener = heard
    assert home.notify_kind == "log" and notify(notice, home, listener).ok
    assert said[0].startswith("acme/router: FAIL (policy staging). mmlu failed: mmlu fell by 8.8 points")
    assert "- mmlu: the adapter forgot: fewer epochs" in said[0] and said[0].endswith("Report: /reports/report.html")


def test_a_webhook_gets_signed_json_that_a_receiver_can_check(home, endpoint, notice, heard) -> None:
    said, listener = heard
    told = notify(notice, to(home, endpoint, secret="s3cret"), listener)
    assert told.ok and told.text.startswith("webhook at 127.0.0.1:") and "secret" not in told.text and not said
    ((headers, body),) = endpoint.got
    assert json.loads(body) == {
        "model_line": "acme/router", "verdict": "FAIL", "reason": notice.reason, "policy": "staging", "what_helps": list(notice.what_helps),
        "report": "/reports/report.html", "digest": DIGEST,
    }  # fmt: skip
    assert headers["X-FT-Delivery"] == DIGEST and abs(int(headers["X-FT-Timestamp"]) - time.time()) < 60
    assert headers["X-FT-Signature"] == signature("s3cret", headers["X-FT-Timestamp"], body)
    assert signature("other", headers["X-FT-Timestamp"], body) != headers["X-FT-Signature"]
    notify(notice, to(home, endpoint), listener)
    assert "X-FT-Signature" not in endpoint.got[1][0]


def test_slack_gets_one_text(home, endpoint, notice, heard) -> None:
    assert notify(notice, to(home, endpoint, kind="slack"), heard[1]).ok
    body = json.loads(endpoint.got[0][1])
    assert list(body) == ["text"] and body["text"].startswith("acme/router: FAIL")


def test_a_server_error_is_tried_again_and_a_refusal_is_not(home, endpoint, notice, heard, quick) -> None:
    endpoint.answers = [500, 503, 200]
    assert notify(notice, to(home, endpoint), heard[1]).text.endswith("3 tries") and len(endpoint.got) == 3
    endpoint.got.clear()
    endpoint.answers = [500]
    told = notify(notice, to(home, endpoint), heard[1])
    assert not told.ok and "answered 500 (3 tries" in told.text and len(endpoint.got) == 3
    endpoint.got.clear()
    endpoint.answers = [404]
    assert "answered 404 (1 try" in notify(notice, to(home, endpoint), heard[1]).text and len(endpoint.got) == 1


def test_a_dead_slow_or_wrong_endpoint_stops_nothing_and_is_told(
    home, endpoint, notice, heard, quick, monkeypatch
) -> None:
    said, listener = heard
    monkeypatch.setattr(notify_module, "TIMEOUT_SECONDS", 0.2)
    endpoint.wait_seconds = 0.6
    begun = time.monotonic()
    told = notify(notice, to(home, endpoint), listener)
    assert not told.ok and "ReadTimeout" in told.text and "3 tries" in told.text and time.monotonic() - begun < 5
    assert said[-1].startswith("acme/router: FAIL") and "The report stands; mend FT_NOTIFY_URL" in said[-1]
    dead = replace(home, notify_url="http://127.0.0.1:9/x", notify_kind="slack")
    assert "ConnectError" in notify(notice, dead, listener).text
    wrong = replace(home, notify_url="no address", notify_kind="slack")
    assert not notify(notice, wrong, listener).ok and len(said) == 3
    assert "/secret/path" not in "".join(said)


def test_a_kind_without_an_address_is_refused_at_the_start(home, monkeypatch) -> None:
    monkeypatch.setenv("FT_NOTIFY_KIND", "slack")
    with pytest.raises(UserError, match="FT_NOTIFY_URL is not set"):
        settings_module.load()
    monkeypatch.setenv("FT_NOTIFY_URL", "http://x/y")
    monkeypatch.setenv("FT_NOTIFY_SECRET", "hush")
    loaded = settings_module.load()
    assert loaded.notify_kind == "slack" and "hush" not in repr(loaded)
    monkeypatch.delenv("FT_NOTIFY_KIND")
    assert settings_module.load().notify_kind == "webhook"
