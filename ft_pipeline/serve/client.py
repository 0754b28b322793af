"""Asks a served model: finds this machine's server or starts one, and yields the answer as it comes. Knows no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ft_pipeline.errors import UserError
from ft_pipeline.settings import Settings, child_environment
from ft_pipeline.store.fingerprint import sha256_json
from ft_pipeline.workers.local import stop

START_SECONDS = 240
"""Importing torch, transformers and peft takes 15-20 s; hashing a large base takes longer."""


def answer(url: str, model: str, messages: Sequence[Mapping[str, Any]], *, stream: bool = True) -> Iterator[str]:
    """The answer of a model in pieces of text. `url` is the server's root. Raises UserError with what the server said."""
    body = {"model": model, "messages": list(messages), "stream": stream}
    with (
        httpx.Client(trust_env=False, timeout=httpx.Timeout(10, read=300)) as client,
        _clear_errors(url),
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
    ):
        if response.status_code != 200:
            response.read()
            raise UserError(_said(response))
        if not stream:
            yield json.loads(response.read())["choices"][0]["message"]["content"]
            return
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield _text(json.loads(line.removeprefix("data: ")))


@contextmanager
def running_server(settings: Settings, port: int) -> Iterator[str]:
    """URL of a server of this catalog on the port; one is started when none answers, and stopped at the end."""
    url = f"http://127.0.0.1:{port}"
    health = _health(url)
    if health is not None:
        if health.get("catalog") != catalog_mark(settings):
            raise UserError(
                f"{url} serves another catalog than {settings.home}",
                why="It would answer with other models under the same names.",
                cure="stop it, or choose another port: --port or FT_SERVE_PORT",
            )
        yield url
        return
    child = start_server(settings, port)
    try:
        yield url
    finally:
        stop(child, grace_seconds=10)


def start_server(settings: Settings, port: int) -> subprocess.Popen[bytes]:
    """A server process on the port, once it answers. Raises UserError with its last words when it does not."""
    log = settings.work / "serve" / f"{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "ft_pipeline.serve.main", str(port), str(os.getpid())],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=child_environment(settings),
        )  # fmt: skip
    until = time.monotonic() + START_SECONDS
    while (health := _health(f"http://127.0.0.1:{port}")) is None or health.get("catalog") != catalog_mark(settings):
        if child.poll() is not None or time.monotonic() > until:
            stop(child, grace_seconds=5)
            raise UserError(f"the server did not start: {_last_lines(log)}", cure=f"its whole log is {log}")
        time.sleep(0.2)
    return child


def catalog_mark(settings: Settings) -> str:
    """Tells servers of different catalogs apart without saying where they are."""
    return sha256_json([settings.catalog_url, settings.store_uri])[:16]


def _health(url: str) -> dict[str, Any] | None:
    """What `/healthz` says, None when nobody answers."""
    try:
        body = httpx.get(f"{url}/healthz", timeout=2, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return None
    return body if isinstance(body, dict) else {}


@contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise UserError(
            f"{url} did not answer: {error}", cure="`ft-pipeline serve` starts a server; its log says why it ended"
        ) from None


def _text(chunk: Mapping[str, Any]) -> str:
    """The text in a chunk. Raises UserError when it is an error event."""
    if "error" in chunk:
        raise UserError(chunk["error"]["message"])
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}"


def _last_lines(path: Path, lines: int = 8) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) or "it said nothing"
