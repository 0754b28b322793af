"""Sends what webhooks are owed: signed (Standard Webhooks), to public addresses only, again later when it fails; one thread of the API process."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import socket
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from ft_pipeline.errors import StorageError
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.webhooks import Webhook
from ft_pipeline.web.refusals import Refusal

TIMEOUT_SECONDS = 10.0
IDLE_SECONDS = 1.0
logger = logging.getLogger(__name__)


@dataclass
class Sender:
    """Posts deliveries until it is stopped. Several processes may each have one: a delivery is leased to one of them."""

    records: Records
    private: bool = False
    """Whether addresses of private networks and plain http are let in: for a platform whose tenants are inside."""
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """The thread's body. A database that does not answer is tried again; what is owed stays owed."""
        while not self.stopped.is_set():
            try:
                busy = self.send_next()
            except StorageError as error:
                logger.warning("webhooks wait: %s", error)
                busy = False
            if not busy:
                self.stopped.wait(IDLE_SECONDS)

    def send_next(self) -> bool:
        """Sends the delivery that is due longest. False when none is."""
        delivery = self.records.take_delivery()
        if delivery is None:
            return False
        status, error = self.post(delivery.webhook, delivery.id, delivery.body)
        if status is not None and not 200 <= status < 300:
            error = f"the endpoint answered {status}"
        self.records.end_delivery(delivery, error=error)
        return True

    def post(self, target: Webhook, event_id: str, body: str) -> tuple[int | None, str | None]:
        """(status, None) of the endpoint's answer, or (None, why there is none). Redirects are not followed: they could lead inside."""
        try:
            address = self._address(target.url)
            url = httpx.URL(target.url)
            headers = {
                **signed_headers(target, event_id, body),
                "Host": url.netloc.decode(),
                "Content-Type": "application/json",
            }
            with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
                request = client.build_request(
                    "POST", url.copy_with(host=address), content=body, headers=headers,
                    extensions={"sni_hostname": url.host, "timeout": httpx.Timeout(TIMEOUT_SECONDS).as_dict()},
                )  # fmt: skip
                response = client.send(request, stream=True)
                response.close()  # only the status counts; a body of any length is not read
                return response.status_code, None
        except Refusal as error:
            return None, error.what
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            return None, f"{type(error).__name__}: {error}"[:300]

    def refuse_address(self, url: str) -> None:
        """Raises Refusal for a URL that no delivery would be sent to."""
        self._address(url)

    def _address(self, url: str) -> str:
        """The address that is connected to, resolved once: a name that changes between the check and the connection gains nothing."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        allowed = ("https", "http") if self.private else ("https",)
        if parts.scheme not in allowed or not host or parts.username or parts.password:
            raise _refused(url, f"it is no {' or '.join(allowed)} URL with a host and without a password")
        try:
            found = socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _refused(url, f"the host {host} has no address") from None
        addresses = [str(entry[4][0]) for entry in found]
        if not self.private and not all(ipaddress.ip_address(a.split("%")[0]).is_global for a in addresses):
            raise _refused(url, "it leads into a private network")
        return addresses[0]


def signed_headers(target: Webhook, event_id: str, body: str) -> dict[str, str]:
    """`webhook-id`, `-timestamp`, `-signature` (v1, HMAC-SHA256 of id.timestamp.body): what `client.webhooks.unwrap` verifies."""
    stamp = str(int(time.time()))
    secrets = [target.secret]
    if target.old_secret and (target.old_secret_until or "") > now():
        secrets.append(target.old_secret)
    signatures = " ".join("v1," + _signature(secret, f"{event_id}.{stamp}.{body}") for secret in secrets)
    return {"webhook-id": event_id, "webhook-timestamp": stamp, "webhook-signature": signatures}


def _signature(secret: str, text: str) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()


def _refused(url: str, reason: str) -> Refusal:
    return Refusal(
        f"nothing is sent to {url[:200]!r}: {reason}",
        code="webhook_url_refused",
        param="url",
        why="The platform would ask addresses inside its own network on behalf of a tenant.",
        cure="give a public https URL; FT_WEBHOOKS_PRIVATE=1 lets private ones in where all tenants are inside",
    )
