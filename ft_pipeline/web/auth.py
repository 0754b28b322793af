"""Who calls: from the bearer key to a tenant with roles, the same 401 for every key that is not good, limits on how often."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.keys import ApiKey
from ft_pipeline.store.platform.rows import Tenant
from ft_pipeline.web.keys import digest_of, open_pepper, prefix_of
from ft_pipeline.web.platform import Caller, Platform, Role
from ft_pipeline.web.rates import MOST_BUCKETS, Rates
from ft_pipeline.web.refusals import Forbidden, TooMany, Unauthenticated

FAILURES_A_MINUTE = 30
"""Keys that are not good which one address may try before it is told to wait."""
bearer = HTTPBearer(auto_error=False, description="An API key: `sk-ft-...`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


class Door:
    """Turns keys into callers for one process. Every request reads the key's row: what is revoked is refused at once."""

    def __init__(self, platform: Platform, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = platform.records
        self._pepper = open_pepper(platform.settings)
        self._rates, self._failures = Rates(clock=clock), Rates(clock=clock)
        self._a_minute: dict[str, int | None] = {}
        self._was_good: dict[str, None] = {}
        """Digests of keys that were good before: who shares an address with somebody who guesses is not shut out with him."""

    def caller(self, key: str | None, *, address: str) -> Caller:
        """Whose key it is. Raises Unauthenticated, TooMany for the tenant's rate, and for an address that has failed too often."""
        network = _network(address)
        digest = digest_of(key or "", self._pepper)
        if digest not in self._was_good and (wait := self._failures.wait_seconds(network, FAILURES_A_MINUTE)):
            raise _too_often("too many keys that are not good came from your address", wait)
        found = self._of_key(key, digest)
        if found is None:
            self._failures.take(network, FAILURES_A_MINUTE)
            self._was_good.pop(digest, None)
            raise _not_good()
        if len(self._was_good) < MOST_BUCKETS:
            self._was_good[digest] = None
        return self._counted(*found)

    def rate_headers(self, caller: Caller) -> dict[str, str]:
        """OpenAI's two headers, for a tenant that has a rate."""
        a_minute = self._a_minute.get(caller.tenant)
        if a_minute is None:
            return {}
        left = self._rates.left(caller.tenant, a_minute)
        return {"x-ratelimit-limit-requests": str(a_minute), "x-ratelimit-remaining-requests": str(left)}

    def _counted(self, caller: Caller, a_minute: int | None) -> Caller:
        self._a_minute[caller.tenant] = a_minute
        if a_minute is not None and (wait := self._rates.take(caller.tenant, a_minute)):
            raise _too_often(f"more than {a_minute} requests a minute of tenant {caller.tenant}", wait)
        return caller

    def caller_of_prefix(self, prefix: str) -> Caller | None:
        """The caller of a key that was shown before: the console's signed cookie names it. None once the key is not good any more."""
        known = self._good(prefix)
        return self._used(*known[:2])[0] if known else None

    def _of_key(self, key: str | None, digest: str) -> tuple[Caller, int | None] | None:
        """The caller and how often the tenant may ask; None for a key that is not good, whatever the reason."""
        known = self._good(prefix_of(key or "") or "")
        return self._used(*known[:2]) if known and hmac.compare_digest(digest, known[2]) else None

    def _good(self, prefix: str) -> tuple[ApiKey, Tenant, str] | None:
        """The row, its tenant and the digest of a key that is neither revoked nor expired and whose tenant is not suspended."""
        known = self._records.known_key(prefix) if prefix else None
        if known is None or known[0].refused_because(now()) or known[1].suspended_at is not None:
            return None
        return known

    def _used(self, row: ApiKey, owner: Tenant) -> tuple[Caller, int | None]:
        """The caller of a key that has proved itself, and how often its tenant may ask."""
        self._records.touch_key(row)
        roles = cast(frozenset[Role], frozenset(row.roles))
        return Caller(tenant=row.tenant, key=row.prefix, name=row.name, roles=roles), owner.limits.requests_a_minute


def needs(*roles: Role) -> Callable[..., Caller]:
    """A dependency that gives the caller: any one of the roles suffices, and without any named every good key does.

    The route answers 401 for a key that is not good, 403 without the role, 429 beyond the tenant's rate.
    """

    def caller(request: Request, credentials: Credentials) -> Caller:
        door: Door = request.app.state.door
        found = door.caller(credentials.credentials if credentials else None, address=address_of(request))
        request.state.caller, request.state.rate_headers = found, door.rate_headers(found)
        if roles and not found.roles & set(roles):
            raise Forbidden(
                f"this key has the roles {', '.join(sorted(found.roles)) or 'none'}, and this needs {' or '.join(roles)}",
                code="missing_role",
                why="Roles keep a key that leaks from doing more than its owner does.",
                cure=f"ask for a key of {found.tenant} with the role",
            )
        return found

    return caller


Anybody = Annotated[Caller, Depends(needs())]
"""A parameter of a route: `caller: Submitter`."""
Submitter = Annotated[Caller, Depends(needs("submit"))]
Approver = Annotated[Caller, Depends(needs("approve"))]
Auditor = Annotated[Caller, Depends(needs("audit"))]
Asker = Annotated[Caller, Depends(needs("infer"))]
Reader = Annotated[Caller, Depends(needs("submit", "approve", "audit"))]
"""Who may look at jobs, files and models."""


def address_of(request: Request) -> str:
    """Of the client, as the server knows it (an ingress in FT_API_PROXIES is believed)."""
    return request.client.host if request.client else ""


def _network(address: str) -> str:
    """The address, of IPv6 the network of 64 bits: one customer of a provider has all the rest."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def _not_good() -> Unauthenticated:
    return Unauthenticated(
        "Incorrect API key provided",
        code="invalid_api_key",
        why="It is missing, malformed, unknown, revoked or expired, or its tenant is suspended; which of these is not said.",
        cure="send `Authorization: Bearer sk-ft-...`; whoever runs the platform makes keys: `ft-pipeline tenants key create`",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _too_often(what: str, wait_seconds: int) -> TooMany:
    return TooMany(
        what,
        code="rate_limit_exceeded",
        cure=f"wait {wait_seconds} s; the official client does so by itself",
        headers={"Retry-After": str(wait_seconds)},
    )
