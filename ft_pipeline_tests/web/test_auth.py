"""Keys at the door: every key that is not good gets the same 401, roles, rates with a clock of our own, last use once a minute."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from fastapi import Depends
from fastapi.testclient import TestClient

from ft_pipeline import settings
from ft_pipeline.errors import UserError
from ft_pipeline.store.platform.keys import NewKey
from ft_pipeline.web.app import build_api
from ft_pipeline.web.auth import FAILURES_A_MINUTE, Door, needs
from ft_pipeline.web.keys import digest_of, new_key, open_pepper, prefix_of
from ft_pipeline.web.platform import ROLES, Caller
from ft_pipeline.web.rates import MOST_BUCKETS, Rates
from ft_pipeline.web.refusals import TooMany, Unauthenticated


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(platform, clock):
    """An application whose clock stands still, with a route for each role."""
    made = build_api(platform)
    made.state.door = Door(platform, clock=clock)
    for role in ROLES:
        made.get(f"/needs/{role}")(_route(role))
    made.get("/needs/either")(_route("submit", "audit"))
    made.get("/needs/any")(_route())
    return made


def _route(*roles):
    wanted = Depends(needs(*roles))

    def route(caller: Caller = wanted) -> dict[str, str]:
        return {"tenant": caller.tenant, "actor": caller.actor}

    return route


@pytest.fixture
def ask(app):
    client = TestClient(app)

    def get(path: str, key: str | None = None, header: str | bytes | None = None):
        said = header if header is not None else f"Bearer {key}" if key is not None else None
        return client.get(path, headers={"Authorization": said} if said is not None else {})

    return get


def expired(platform, *, seconds: int) -> str:
    prefix, text = new_key()
    ends = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds")
    digest = digest_of(text, open_pepper(platform.settings))
    new = NewKey(prefix=prefix, hmac_sha256=digest, tenant="acme", name="ci", roles=ROLES, expires_at=ends)
    platform.records.add_key(new, actor="tester")
    return text


def test_a_good_key_says_who_calls(ask, key):
    answer = ask("/needs/any", key("acme", ["submit"], name="ci"))
    assert (answer.status_code, answer.json()) == (200, {"tenant": "acme", "actor": "acme/ci"})


def test_every_key_that_is_not_good_gets_the_same_401(ask, key, platform):
    good = key("acme")
    revoked, suspended = key("acme"), key("other")
    platform.records.revoke_key(prefix_of(revoked), actor="ann", reason="leaked")
    platform.records.suspend("other", actor="ann", reason="unpaid")
    answers = [
        ask("/needs/any"),
        ask("/needs/any", header=good),
        ask("/needs/any", header=f"Basic {good}"),
        ask("/needs/any", key="sk-ft-short"),
        ask("/needs/any", key=new_key()[1]),
        ask("/needs/any", key=good[:-1] + ("A" if good[-1] != "A" else "B")),
        ask("/needs/any", key=good + "x"),
        ask("/needs/any", key=good.upper()),
        ask("/needs/any", header="Bearer \u0663".encode()),
        ask("/needs/any", key=revoked),
        ask("/needs/any", key=suspended),
        ask("/needs/any", key=expired(platform, seconds=-1)),
    ]
    assert {a.status_code for a in answers} == {401}
    assert len({a.text for a in answers}) == 1
    assert answers[0].json()["error"]["code"] == "invalid_api_key"
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert ask("/needs/any", key=expired(platform, seconds=60)).status_code == 200
    platform.records.resume("other", actor="ann", reason="paid")
    assert ask("/needs/any", key=suspended).status_code == 200


def test_a_key_that_is_revoked_while_it_is_used_is_refused_at_once(ask, key, platform):
    good = key()
    assert ask("/needs/any", good).status_code == 200
    platform.records.revoke_key(prefix_of(good), actor="ann", reason="leaked")
    assert ask("/needs/any", good).status_code == 401


@pytest.mark.parametrize("role", ROLES)
def test_a_role_opens_its_routes_and_no_other(ask, key, role):
    only = key("acme", [role])
    assert {r for r in ROLES if ask(f"/needs/{r}", only).status_code == 200} == {role}
    either = ask("/needs/either", only)
    assert either.status_code == (200 if role in ("submit", "audit") else 403)
    if either.status_code == 403:
        assert either.json()["error"]["type"] == "permission_error"
        assert f"has the roles {role}" in either.json()["error"]["message"]


def test_a_tenant_has_so_many_requests_a_minute_over_all_its_keys(ask, key, clock):
    one, two, other = key("acme", requests_a_minute=3), key("acme"), key("other")
    assert [ask("/needs/any", k).status_code for k in (one, two, one, two)] == [200, 200, 200, 429]
    refused = ask("/needs/any", one)
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("rate_limit_exceeded", "20")
    assert ask("/needs/any", other).status_code == 200
    clock.now = 20
    assert [ask("/needs/any", one).status_code for _ in range(2)] == [200, 429]
    clock.now = 3600
    assert [ask("/needs/any", one).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_a_limit_of_nothing_refuses_and_no_limit_refuses_never(ask, key):
    assert ask("/needs/any", key("closed", requests_a_minute=0)).status_code == 429
    free = key("free", requests_a_minute=None)
    assert {ask("/needs/any", free).status_code for _ in range(700)} == {200}


def test_who_guesses_keys_waits_and_who_shares_his_address_does_not(ask, key, clock):
    used, unused = key(), key()
    assert ask("/needs/any", used).status_code == 200
    codes = [ask("/needs/any", new_key()[1]).status_code for _ in range(FAILURES_A_MINUTE + 2)]
    assert codes == [401] * FAILURES_A_MINUTE + [429] * 2
    assert ask("/needs/any", used).status_code == 200
    assert ask("/needs/any", unused).headers["retry-after"] == "2"
    clock.now = 60
    assert ask("/needs/any", unused).status_code == 200


def test_last_use_is_written_once_a_minute(ask, key, platform):
    good = key()
    ask("/needs/any", good)
    first = platform.records.key(prefix_of(good)).last_used_at
    ask("/needs/any", good)
    assert first is not None and platform.records.key(prefix_of(good)).last_used_at == first


def test_the_database_holds_no_key_and_the_pepper_is_for_its_owner_alone(key, platform):
    text = key()
    rows = "".join(str(platform.records.known_key(prefix_of(text))))
    assert text.rpartition("-")[2] not in rows and text not in str(platform.records.audit_lines())
    kept = platform.settings.home / "keys" / "api-pepper"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert digest_of(text, b"another pepper") != digest_of(text, open_pepper(platform.settings))


def test_a_pepper_of_the_environment_is_used_checked_and_not_given_to_jobs(home, monkeypatch):
    monkeypatch.setenv("FT_API_PEPPER", "p" * 32)
    where = settings.load()
    assert open_pepper(where) == b"p" * 32 and not (where.home / "keys").exists()
    assert "p" * 32 not in repr(where)
    assert "FT_API_PEPPER" not in settings.job_environment(where)
    monkeypatch.setenv("FT_API_PEPPER", "short")
    with pytest.raises(UserError, match="FT_API_PEPPER holds 5 bytes"):
        open_pepper(settings.load())


def test_two_processes_that_make_the_pepper_use_the_same(home):
    code = "from ft_pipeline import settings; from ft_pipeline.web.keys import open_pepper; print(open_pepper(settings.load()))"
    two = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    said = {child.communicate()[0] for child in two}
    assert len(said) == 1 and len(said.pop()) > 64


def test_who_asks_from_ever_new_addresses_fills_no_memory(clock):
    rates = Rates(clock=clock)
    for number in range(MOST_BUCKETS + 10):
        rates.take(str(number), 1)
    assert rates.take(str(MOST_BUCKETS + 9), 1) == 60
    assert rates.take("0", 1) == 0, "the oldest was forgotten"
    assert len(rates._buckets) == MOST_BUCKETS


def test_a_customer_of_a_provider_has_one_network_of_ipv6(platform, clock):
    door = Door(platform, clock=clock)
    for number in range(FAILURES_A_MINUTE):
        with pytest.raises(Unauthenticated):
            door.caller(new_key()[1], address=f"2001:db8::{number:x}")
    with pytest.raises(TooMany):
        door.caller(new_key()[1], address="2001:db8::ffff")
    with pytest.raises(Unauthenticated):
        door.caller(new_key()[1], address="2001:db8:0:1::1")
