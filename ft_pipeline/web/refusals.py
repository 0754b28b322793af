"""What the API refuses: the status, OpenAI's error code and the parameter, with the house's three sentences as the message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ft_pipeline.errors import UserError


class Refusal(UserError):
    """A request that is refused. `param` names the field, `code` is for programs, `headers` go with the answer."""

    status = 400
    kind = "invalid_request_error"

    def __init__(
        self, what: str, *, code: str | None = None, param: str | None = None, why: str = "", cure: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(what, why=why, cure=cure)
        self.code, self.param, self.headers = code, param, dict(headers or {})


class Unauthenticated(Refusal):
    """No key, or one that is unknown, revoked, expired, or of a suspended tenant."""

    status = 401
    kind = "authentication_error"


class Forbidden(Refusal):
    """A key without the role."""

    status = 403
    kind = "permission_error"


class Absent(Refusal):
    """Nothing of this name belongs to the tenant: the same answer for what does not exist and for what is another's."""

    status = 404


class TooLarge(Refusal):
    """A body beyond the limit."""

    status = 413


class Mismatch(Refusal):
    """Never 409: the official client sends a 409 again."""

    status = 422


class TooMany(Refusal):
    """A rate limit or a quota. A quota does not pass by waiting: then `x-should-retry: false` goes with it."""

    status = 429
    kind = "rate_limit_error"


class ErrorShown(BaseModel):
    """For programs `code`, for people `message`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error."""

    error: ErrorShown


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words}
    for status, words in {
        400: "The request cannot be used as it is",
        401: "No key that is good",
        403: "A key without the role",
        404: "Nothing of this name is the tenant's",
        408: "The body came too slowly",
        413: "The body is too large",
        422: "An Idempotency-Key that was used for another request",
        429: "Beyond a rate (Retry-After) or a quota (x-should-retry: false)",
        503: "A database, store or model server does not answer now",
    }.items()
}
"""What any route may answer, in the OpenAPI document."""
