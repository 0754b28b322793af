"""`tenants`: from nobody to a key that is let in, replaced, revoked; limits; suspension; the audit log."""

from __future__ import annotations

import json

import pytest

from ft_pipeline.settings import load
from ft_pipeline.web.auth import Door
from ft_pipeline.web.platform import open_platform
from ft_pipeline.web.refusals import Unauthenticated


def printed(answer) -> list[dict]:
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def let_in(text: str) -> set[str]:
    """The roles that a key opens; none for one that is not good."""
    platform = open_platform(load())
    try:
        return set(Door(platform).caller(text, address="127.0.0.1").roles)
    except Unauthenticated:
        return set()
    finally:
        platform.records.close()
        platform.catalog.close()


def test_a_key_is_made_shown_once_replaced_and_revoked(typed):
    assert "next: `ft-pipeline tenants key create acme" in typed("tenants", "add", "acme").out
    (made,) = printed(typed("tenants", "key", "create", "acme", "--role", "submit", "--name", "ci", "--json"))
    assert let_in(made["key"]) == {"submit"}
    listed = typed("tenants", "key", "list", "acme", "--json")
    (row,) = printed(listed)
    assert (row["state"], row["name"], row["last_used_at"] is None) == ("good", "ci", False)
    assert made["key"] not in listed.out
    (young,) = printed(typed("tenants", "key", "rotate", made["prefix"], "--grace-hours", "0", "--json"))
    assert (let_in(made["key"]), let_in(young["key"])) == (set(), {"submit"})
    assert f"key {young['prefix']} of acme (ci) is revoked" in typed("tenants", "key", "revoke", young["prefix"]).out
    assert let_in(young["key"]) == set()
    states = [row["state"] for row in printed(typed("tenants", "key", "list", "--json"))]
    assert states == ["it has expired", "it was revoked"]


def test_for_a_person_the_key_is_on_a_line_of_its_own(typed):
    typed("tenants", "add", "acme")
    out = typed("tenants", "key", "create", "acme", "--role", "infer", "--days", "30").out
    assert let_in(out.splitlines()[0]) == {"infer"}
    assert "shown this once" in out
    assert "until 20" in typed("tenants", "key", "rotate", out.split("-")[2]).out


def test_limits_are_set_and_taken_away(typed):
    typed("tenants", "add", "acme", "--concurrent-jobs", "1", "--queued-jobs", "none", "--tier", "30")
    (row,) = printed(typed("tenants", "limits", "acme", "--money-a-month", "12.5", "--json"))
    limits = row["limits"]
    assert (row["tier"], limits["concurrent_jobs"], limits["queued_jobs"], limits["money_a_month"]) == (
        30,
        1,
        None,
        12.5,
    )
    assert "money_a_month" in typed("tenants", "show", "acme").out
    assert "acme" in typed("tenants", "list").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "A/B"], "is no name for a tenant"),
        (["add", "acme"], "exists already"),
        (["add", "other", "--concurrent-jobs", "-1"], "is no amount"),
        (["limits", "acme", "--queued-jobs", "many"], "neither a number nor `none`"),
        (["limits", "acme"], "nothing to change"),
        (["show", "acne"], "did you mean acme?"),
        (["audit", "acne"], "did you mean acme?"),
        (["resume", "acme"], "is not suspended"),
        (["key", "create", "acne", "--role", "submit"], "did you mean acme?"),
        (["key", "create", "acme"], "Missing option '--role'"),
        (["key", "create", "acme", "--role", "root"], "'root' is not one of"),
        (["key", "rotate", "abc"], "no API key with the prefix 'abc'"),
        (["key", "revoke", "abc"], "no API key with the prefix 'abc'"),
        (["key", "list", "acne"], "did you mean acme?"),
    ],
)
def test_mistakes_are_said_without_a_traceback(typed, words, says):
    typed("tenants", "add", "acme")
    answer = typed("tenants", *words)
    assert answer.code == 2
    assert says in answer.err and "Traceback" not in answer.err


def test_suspended_keys_are_refused_and_everything_is_in_the_log(typed):
    typed("tenants", "add", "acme")
    (made,) = printed(typed("tenants", "key", "create", "acme", "--role", "audit", "--json"))
    typed("tenants", "suspend", "acme", "--reason", "unpaid")
    assert let_in(made["key"]) == set()
    typed("tenants", "resume", "acme")
    assert let_in(made["key"]) == {"audit"}
    log = printed(typed("tenants", "audit", "acme", "--json"))
    assert [line["action"] for line in log] == ["tenant.resume", "tenant.suspend", "key.create", "tenant.add"]
    assert {line["actor"] for line in log} == {"tester"}
    assert log[1]["detail"] == {"reason": "unpaid"}
    (whole,) = printed(typed("tenants", "audit", "--verify", "--json"))
    assert whole == {"lines": 4, "sha256_of_the_last": log[0]["sha256"]}
    assert "reason=unpaid" in typed("tenants", "audit").out
