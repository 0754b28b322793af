"""Tells the tenant that a report was made: in the log, as a signed JSON POST, or as a Slack message. A dead endpoint stops nothing.

A webhook's body is the notice as JSON. Where FT_NOTIFY_SECRET is set, `X-FT-Signature: sha256=HEX` is the HMAC-SHA256 of
`X-FT-Timestamp`, a dot and the body's bytes: a receiver recomputes it, and refuses old timestamps.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ft_pipeline.gate.artifact import EvalReport
from ft_pipeline.gate.page import steps
from ft_pipeline.settings import Settings
from ft_pipeline.workers.messages import Listener, log

if TYPE_CHECKING:
    import httpx

TRIES = 3
TIMEOUT_SECONDS = 5.0
"""Of each try. With the waits between them a dead endpoint costs at most 17 s."""
WAIT_SECONDS = (0.5, 1.0)
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be other ones a second later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """What a tenant is told. No question and no answer of a suite is in it."""

    model_line: str
    verdict: str
    """PASS, FAIL, INCONCLUSIVE, ERROR."""
    reason: str
    policy: str
    what_helps: tuple[str, ...]
    report: str
    """Where the page is, for a person."""
    digest: str
    """Of the report's artifact: equal for equal notices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """How the telling ended."""

    ok: bool
    text: str


def notice_of(report: EvalReport, *, model_line: str, place: str, digest: str) -> Notice:
    """The notice of a report."""
    helps = tuple(f"{name}: {text}" if name else text for name, text in steps(report))
    return Notice(
        model_line=model_line, verdict=str(report.verdict), reason=report.reason, policy=report.policy, what_helps=helps,
        report=place, digest=digest,
    )  # fmt: skip


def notify(notice: Notice, settings: Settings, listener: Listener) -> Told:
    """Tells it as FT_NOTIFY_KIND says, in at most three tries. Never raises for an endpoint: what went wrong is told in the log."""
    if settings.notify_kind == "log" or not settings.notify_url:
        log(listener, message(notice))
        return Told(ok=True, text="in the log")
    body = json.dumps({"text": message(notice)} if settings.notify_kind == "slack" else asdict(notice)).encode()
    where = f"{settings.notify_kind} at {urlsplit(settings.notify_url).netloc}"  # the path of a Slack URL is a secret
    begun, said = time.monotonic(), ""
    for number in range(TRIES):
        if number:
            time.sleep(WAIT_SECONDS[number - 1])
        said, again = _posted(settings, body, digest=notice.digest)
        if not said:
            return Told(ok=True, text=f"{where}, {_tries(number + 1)}")
        if not again:
            break
    told = f"not told: {where}: {said} ({_tries(number + 1)}, {time.monotonic() - begun:.1f} s)"
    log(listener, f"{message(notice)}\nThe tenant is {told}. The report stands; mend FT_NOTIFY_URL or the endpoint")
    return Told(ok=False, text=told)


def message(notice: Notice) -> str:
    """The notice as text, for a person in a chat."""
    helps = "".join(f"\n- {text}" for text in notice.what_helps)
    return f"{notice.model_line}: {notice.verdict} (policy {notice.policy}). {notice.reason}.{helps}\nReport: {notice.report}"


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What X-FT-Signature must be."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _posted(settings: Settings, body: bytes, *, digest: str) -> tuple[str, bool]:
    """What went wrong, or nothing; and whether another try may help."""
    import httpx

    assert settings.notify_url is not None
    try:
        answer = httpx.post(
            settings.notify_url, content=body, headers=_headers(settings, body, digest), timeout=TIMEOUT_SECONDS
        )
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}".rstrip(": "), True
    except (httpx.InvalidURL, ValueError) as error:
        return f"FT_NOTIFY_URL is no address: {error}", False
    return _refused(answer), answer.status_code in AGAIN


def _headers(settings: Settings, body: bytes, digest: str) -> Mapping[str, str]:
    headers = {"Content-Type": "application/json", "X-FT-Delivery": digest}
    if settings.notify_secret:
        now = str(int(time.time()))
        headers |= {"X-FT-Timestamp": now, "X-FT-Signature": signature(settings.notify_secret, now, body)}
    return headers


def _refused(answer: httpx.Response) -> str:
    return "" if answer.is_success else f"answered {answer.status_code}"


def _tries(number: int) -> str:
    return f"{number} {'try' if number == 1 else 'tries'}"
