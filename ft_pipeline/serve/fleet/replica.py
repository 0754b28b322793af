"""One vLLM replica as seen over HTTP (read from vLLM 0.32): what it holds, loading through our resolver, unloading, its metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import httpx

SECONDS = httpx.Timeout(10.0, connect=2.0)
LOAD_SECONDS = 300.0
"""The resolver may have to fetch an adapter from a bucket and hash it."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A row of `/v1/models`."""

    name: str
    root: str
    """The folder that the weights came from: of our resolver, one named by their digest."""
    is_base: bool

    @property
    def digest(self) -> str | None:
        """Of an adapter's weights, when the folder says it."""
        found = _DIGEST.findall(self.root)
        return found[-1] if found else None

    def is_other_than(self, ids: frozenset[str]) -> bool:
        """True when the folder has the digest or fingerprint of something else in its name; one that says nothing is believed."""
        return bool(_DIGEST.findall(self.root)) and not ids & set(_DIGEST.findall(self.root))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a replica answered, or why it did not."""

    url: str
    held: tuple[Held, ...] = ()
    trouble: str = ""

    @property
    def base_name(self) -> str:
        """The name of the model without an adapter."""
        return next((h.name for h in self.held if h.is_base), "")

    def adapter(self, name: str) -> Held | None:
        """The adapter of a name."""
        return next((h for h in self.held if h.name == name and not h.is_base), None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status other than 200, and vLLM's own words."""

    status: int
    message: str


@dataclass(frozen=True)
class Replica:
    """Calls. A replica that does not answer raises httpx.HTTPError."""

    url: str
    client: httpx.AsyncClient = field(repr=False)

    async def seen(self) -> Seen:
        """`/health`, then `/v1/models`. Raises nothing: a dead replica is a fact."""
        try:
            health = await self.client.get(f"{self.url}/health", timeout=SECONDS)
            if health.status_code != 200:
                return Seen(url=self.url, trouble=f"/health says {health.status_code}")
            listed = await self.client.get(f"{self.url}/v1/models", timeout=SECONDS)
            listed.raise_for_status()
            return Seen(url=self.url, held=tuple(_held(row) for row in listed.json()["data"]))
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            return Seen(url=self.url, trouble=f"{type(error).__name__}: {error}")

    async def load(self, name: str) -> Refusal | None:
        """Makes the replica hold an adapter, through the resolver of its own plugin, which verifies the bytes.

        `POST /tokenize` is the cheapest request that resolves a name: it loads the adapter into the engine and generates nothing.
        `/v1/load_lora_adapter` would take any folder for any name, past the resolver.
        """
        body = {"model": name, "prompt": "x"}
        return _refusal(await self.client.post(f"{self.url}/tokenize", json=body, timeout=LOAD_SECONDS))

    async def unload(self, name: str) -> Refusal | None:
        """Takes a name away. Answers that run are finished; 404 means that somebody was faster."""
        answer = await self.client.post(
            f"{self.url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=LOAD_SECONDS
        )
        return None if answer.status_code == 404 else _refusal(answer)

    async def metrics(self) -> str:
        """Prometheus' text."""
        answer = await self.client.get(f"{self.url}/metrics", timeout=SECONDS)
        answer.raise_for_status()
        return answer.text


def message_of(body: bytes) -> str:
    """The message of an error of vLLM, else the start of its body."""
    try:
        return str(httpx.Response(200, content=body).json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode("utf-8", "replace")


def _refusal(answer: httpx.Response) -> Refusal | None:
    return None if answer.status_code == 200 else Refusal(answer.status_code, message_of(answer.content))


def _held(row: dict[str, Any]) -> Held:
    return Held(name=row["id"], root=row.get("root") or "", is_base=row.get("parent") is None)
