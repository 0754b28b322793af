"""Clients that ask one model line without a pause and write down what they got: for rollbacks under load."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import httpx


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    start: float
    end: float
    status: int
    """0 when the connection broke."""
    weights: str
    """`system_fingerprint` of the answer."""
    text: str


@dataclass
class Load:
    """Asks while its block runs."""

    url: str
    model: str
    clients: int = 4
    max_tokens: int = 16
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Asked]:
        """Requests without an answer."""
        return [a for a in self.asked if a.status != 200 or not a.weights]

    def until_all_new(self, since: float, weights: str, *, timeout: float = 30) -> tuple[float, float]:
        """Seconds after `since` until the first answer of these weights ended, and until the last request that others answered began.

        Waits until every client has had an answer of these weights to a request that began later.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            new = [a for a in self.asked if a.start > since and a.weights == weights]
            old = [a.start for a in self.asked if a.weights != weights]
            if len([a for a in new if a.start > max(old, default=0)]) >= 2 * self.clients:
                return min(a.end for a in new) - since, max(0.0, max(old, default=since) - since)
            time.sleep(0.02)
        raise AssertionError(f"after {timeout} s the weights {weights} do not answer everyone")

    def _ask(self) -> None:
        body = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": "which module is it?"}],
        }
        with httpx.Client(trust_env=False, timeout=60, headers=self.headers) as client:
            while not self._stopped.is_set():
                start = time.monotonic()
                try:
                    said = client.post(f"{self.url}/v1/chat/completions", json=body)
                    answer = said.json()
                except httpx.HTTPError as error:
                    self.asked.append(Asked(start, time.monotonic(), 0, "", repr(error)))
                    continue
                text = answer["choices"][0]["message"]["content"] if said.is_success else str(answer)
                fingerprint = answer.get("system_fingerprint") or ""
                self.asked.append(Asked(start, time.monotonic(), said.status_code, fingerprint, text))
