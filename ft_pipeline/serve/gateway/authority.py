"""Who calls, and who is told what was used: the two things that the gateway gets from the platform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ft_pipeline.errors import FtError


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who a key belongs to."""

    tenant: str
    may_infer: bool = True
    """False: the key is for other things, for example for approvals."""


class Authority(Protocol):
    """Knows the keys. Called in a thread, once for each request: revoking a key holds from the next request on."""

    def caller(self, bearer_key: str, *, address: str) -> Caller | None:
        """The owner of a key; None for a key that is unknown, expired or revoked. May raise Refused: 429 for who asks too often."""
        ...


class Meter(Protocol):
    """Is told what was used. Called in one thread, after the answer."""

    def add(self, tenant: str, version: str, *, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """`version` is `tenant/model@3`, or `base-<12 hex>` for a base without an adapter."""
        ...


class Refused(FtError):
    """A request that gets no answer, with its status in HTTP and OpenAI's `type`, `code` and `param`."""

    def __init__(
        self, status: int, what: str, *, kind: str = "invalid_request_error", code: str | None = None,
        param: str | None = None, retry_after_seconds: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(what)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.retry_after_seconds = retry_after_seconds


def unknown_model(name: str) -> Refused:
    """The same words for a model that does not exist, is archived, or is another tenant's."""
    return Refused(
        404,
        f"the model {name!r} does not answer: no version of yours in staging or production has this name",
        code="model_not_found",
        param="model",
    )


def unavailable(what: str, code: str, *, retry_after_seconds: int = 5) -> Refused:
    """Something that may be well again in a moment."""
    return Refused(503, what, kind="server_error", code=code, retry_after_seconds=retry_after_seconds)
