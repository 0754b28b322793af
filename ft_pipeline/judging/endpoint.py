"""A judge behind an OpenAI-compatible server: vLLM, Ollama, TGI, a proxy, a provider. Patient with 429, 5xx and silence, with an end."""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline.judging.forms import Form
from ft_pipeline.judging.judge import NoReply, Reply

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
BUSY, MOVED_ON = 429, 408
DETAIL_CHARACTERS = 160


@dataclass
class Endpoint:
    """`POST base_url/chat/completions` at temperature 0 with a seed. Connections are shared by threads."""

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    max_new_tokens: int = 512
    seed: int = 0
    timeout_seconds: float = 60.0
    attempts: int = 5
    wait: Callable[[float], None] = time.sleep
    _client: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._client = httpx.Client(timeout=self.timeout_seconds, headers=headers)
        weakref.finalize(self, self._client.close)

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """As Speaker. Raises NoReply."""
        return self.complete(form.messages(fields))

    def complete(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> Reply:
        """The reply of the first attempt that gets one; `more` goes into the request. Raises NoReply with the cause of the last."""
        body = {
            "model": self.model, "messages": list(messages), "temperature": 0, "seed": self.seed,
            "max_tokens": self.max_new_tokens, **more,
        }  # fmt: skip
        for attempt in range(1, self.attempts + 1):
            try:
                return self._once(body, attempt)
            except _Again as failure:
                if attempt == self.attempts:
                    raise NoReply(failure.cause, f"{failure.detail}, {attempt} attempts") from None
                self.wait(failure.wait_seconds if failure.wait_seconds is not None else _pause(attempt))
        raise AssertionError("the last attempt returns or raises")

    def _once(self, body: dict[str, Any], attempt: int) -> Reply:
        import httpx

        try:
            answer = self._client.post(f"{self.base_url.rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException:
            raise _Again("timeout", f"no answer within {self.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            raise _Again("connection", f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]) from None
        _refuse(answer)
        return _reply(answer, attempt)


class _Again(Exception):
    """A failure that may pass. `wait_seconds`: what the server asks for."""

    def __init__(self, cause: str, detail: str, wait_seconds: float | None = None) -> None:
        super().__init__(cause, detail)
        self.cause, self.detail, self.wait_seconds = cause, detail, wait_seconds


def _refuse(answer: Any) -> None:
    """Raises for a status that is not 200: _Again where it may pass, NoReply where the same call can only fail again."""
    status, told = answer.status_code, f"HTTP {answer.status_code}"
    if status == BUSY:
        raise _Again("busy", told, _asked_wait(answer.headers.get("retry-after", "")))
    if status >= 500 or status == MOVED_ON:
        raise _Again("server", told)
    if status != 200:
        raise NoReply("refused", f"{told}: {answer.text[:DETAIL_CHARACTERS]}")


def _reply(answer: Any, attempt: int) -> Reply:
    """Raises _Again for a body that is no chat completion: proxies answer so while a server starts."""
    try:
        body = answer.json()
        text = body["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _Again("garbage", f"no chat completion: {answer.text[:60]!r}") from None
    if not isinstance(text, str):
        raise _Again("garbage", f"the content is {text!r}"[:DETAIL_CHARACTERS])
    counted = body.get("usage") or {}
    usage = {k: v for k, v in counted.items() if isinstance(v, int)} if isinstance(counted, dict) else {}
    return Reply(text=text, usage=usage, attempts=attempt)


def _pause(attempt: int) -> float:
    """0.5, 1, 2, ... s, with up to a half more: callers that were refused together shall not come back together."""
    return min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * (1 + random.random() / 2), LONGEST_WAIT_SECONDS)  # noqa: S311


def _asked_wait(header: str) -> float | None:
    """Seconds of a Retry-After header; a date or nonsense is as none."""
    try:
        return min(max(float(header), 0.0), LONGEST_WAIT_SECONDS)
    except ValueError:
        return None
