"""What the API refuses: the status, OpenAI's error code and the parameter, with the house's three sentences as the message."""

from __future__ import annotations

from collections.abc import Mapping

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
