"""Signing in with an API key: a signed cookie that names the key, looked up at every request, and a token in every form."""

from __future__ import annotations

import hmac
import secrets
import time
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Form, Request

from ft_pipeline.errors import UserError
from ft_pipeline.web.auth import Door
from ft_pipeline.web.keys import open_pepper
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.refusals import Forbidden

COOKIE = "ft_console"
HOURS = 12
"""How long a browser stays signed in. A key that is revoked is out at once."""


class SignedOut(UserError):
    """No cookie, or one that no longer counts: the browser is sent to the sign-in page."""


def new_session(platform: Platform, caller: Caller) -> str:
    """A cookie's value: key prefix, end, nonce, and an HMAC over them."""
    body = f"{caller.key}.{int(time.time()) + HOURS * 3600}.{secrets.token_hex(8)}"
    return f"{body}.{_mac(platform, 'session', body)}"


def signed_in(request: Request) -> Caller:
    """The caller of a browser's cookie. Raises SignedOut."""
    platform: Platform = request.app.state.platform
    door: Door = request.app.state.door
    value = request.cookies.get(COOKIE, "")
    body, _, mac = value.rpartition(".")
    if not body or not hmac.compare_digest(mac, _mac(platform, "session", body)):
        raise SignedOut("sign in first")
    prefix, ends, _ = body.split(".")
    caller = door.caller_of_prefix(prefix) if int(ends) > time.time() else None
    if caller is None:
        raise SignedOut("the session has ended, or its key was revoked")
    request.state.caller = caller
    return caller


def form_token(request: Request) -> str:
    """What a form of this session carries: a page of another site does not know it."""
    return _mac(request.app.state.platform, "form", request.cookies.get(COOKIE, ""))


def checked_form(
    request: Request, caller: Annotated[Caller, Depends(signed_in)], token: Annotated[str, Form(max_length=128)] = ""
) -> Caller:
    """The caller of a form that this console made. Raises Forbidden for one of another page."""
    origin = request.headers.get("origin")
    elsewhere = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if elsewhere or not hmac.compare_digest(token, form_token(request)):
        raise Forbidden(
            "the form is not of this session",
            code="foreign_form",
            cure="load the page again and press the button there",
        )
    return caller


def require_role(caller: Caller, *roles: str) -> None:
    """Raises Forbidden unless the caller has one of the roles."""
    if not caller.roles & set(roles):
        raise Forbidden(
            f"this key has the roles {', '.join(sorted(caller.roles))}, and this needs {' or '.join(roles)}",
            code="missing_role",
            cure="sign in with a key that has the role",
        )


def _mac(platform: Platform, purpose: str, text: str) -> str:
    return hmac.digest(open_pepper(platform.settings), f"console {purpose} {text}".encode(), "sha256").hex()
