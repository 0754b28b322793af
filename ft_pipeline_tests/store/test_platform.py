"""Tenants, keys, usage and the audit chain, on SQLite and PostgreSQL: what is refused, what is written down, what tampering leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from ft_pipeline.errors import IntegrityError, NotFoundError, StorageError, UserError
from ft_pipeline.store.catalog_database import open_database
from ft_pipeline.store.migrations.rules_0001 import GENESIS
from ft_pipeline.store.platform.keys import NewKey
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.store.platform.tables import api_keys


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def records(request: pytest.FixtureRequest, tmp_path) -> Iterator[Records]:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    opened = Records(open_database(url).engine)
    opened.add_tenant("acme", actor="ann")
    yield opened
    opened.close()


def new(prefix: str = "0" * 12, **changes: object) -> NewKey:
    return NewKey(**{"prefix": prefix, "hmac_sha256": "f" * 64, "tenant": "acme", "name": "ci", "roles": ("submit", "infer"), **changes})  # fmt: skip


def acts(records: Records, tenant: str | None = None) -> list[tuple[str, str]]:
    return [(line.action, line.subject) for line in reversed(records.audit_lines(tenant=tenant))]


def later(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat(timespec="microseconds")


def test_a_tenant_has_limits_that_can_be_changed_one_by_one(records):
    assert records.tenant("acme").limits == Limits()
    changed = records.set_limits("acme", actor="ann", concurrent_jobs=5, money_a_month=None, tier=20)
    assert (changed.tier, changed.limits) == (20, Limits(concurrent_jobs=5))
    assert records.tenants() == [changed]
    for wrong in ({"concurrent_jobs": -1}, {"tier": 0}):
        with pytest.raises(UserError):
            records.set_limits("acme", actor="ann", **wrong)
    assert acts(records) == [("tenant.add", "acme"), ("tenant.limits", "acme")]


def test_what_is_no_name_is_no_tenant(records):
    for name in ("Acme", "", "a/b", "../a", "a b", "-a", "a" * 61, "\u0430cme", "acme\n"):
        with pytest.raises(UserError, match="is no name for a tenant"):
            records.add_tenant(name, actor="ann")


def test_a_tenant_is_added_and_suspended_once(records):
    with pytest.raises(UserError, match="exists already"):
        records.add_tenant("acme", actor="ann")
    with pytest.raises(NotFoundError, match="did you mean acme"):
        records.tenant("acne")
    assert records.suspend("acme", actor="ann", reason="unpaid").suspended_at
    with pytest.raises(UserError, match="is suspended"):
        records.suspend("acme", actor="ann", reason="again")
    assert records.resume("acme", actor="ann", reason="paid").suspended_at is None
    assert acts(records)[1:] == [("tenant.suspend", "acme"), ("tenant.resume", "acme")]


def test_rotation_makes_a_key_and_ends_the_old_one_after_the_grace(records):
    records.add_key(new("a" * 12), actor="ann")
    records.replace_key("a" * 12, new("b" * 12), actor="ann", grace_seconds=3600)
    old, young = records.key("a" * 12), records.key("b" * 12)
    assert (young.roles, young.expires_at) == (("infer", "submit"), None)
    assert old.refused_because(later(minutes=59)) is None
    assert old.refused_because(later(minutes=61)) == "it has expired"
    records.revoke_key("a" * 12, actor="ann", reason="leaked")
    records.revoke_key("a" * 12, actor="ann", reason="a second time")
    with pytest.raises(UserError, match="cannot be rotated: it was revoked"):
        records.replace_key("a" * 12, new("c" * 12), actor="ann", grace_seconds=0)
    assert acts(records)[1:] == [("key.create", "a" * 12), ("key.rotate", "b" * 12), ("key.revoke", "a" * 12)]


def test_rotation_does_not_lengthen_a_life(records):
    soon = later(minutes=5)
    records.add_key(new("a" * 12, expires_at=soon), actor="ann")
    records.replace_key("a" * 12, new("b" * 12), actor="ann", grace_seconds=3600)
    assert records.key("a" * 12).expires_at == soon


def test_a_key_of_nobody_is_not_made(records):
    with pytest.raises(NotFoundError, match="no tenant 'other'"):
        records.add_key(new(tenant="other"), actor="ann")
    assert records.keys() == [] and records.known_key("0" * 12) is None


def test_last_use_is_written_again_after_a_minute(records):
    records.add_key(new(), actor="ann")
    records.touch_key(records.key("0" * 12))
    first = records.key("0" * 12).last_used_at
    records.touch_key(records.key("0" * 12))
    assert records.key("0" * 12).last_used_at == first
    with records.write() as db:
        db.execute(sa.update(api_keys).values(last_used_at=later(seconds=-61)))
    records.touch_key(records.key("0" * 12))
    assert records.key("0" * 12).last_used_at > first


def test_answers_are_counted_up_by_day(records):
    for seconds in (1.0, 2.0):
        records.add_usage("acme", "acme/router@1", prompt_tokens=10, completion_tokens=3, seconds=seconds)
    (row,) = records.answered(tenant="acme", first_day="2000-01-01", last_day="2999-01-01")
    assert (row.requests, row.prompt_tokens, row.completion_tokens, row.seconds) == (2, 20, 6, 3.0)
    with pytest.raises(StorageError):
        records.add_usage("nobody", "x", prompt_tokens=1, completion_tokens=1, seconds=1)


def test_each_tenant_sees_its_own_lines_in_pages(records):
    records.add_tenant("other", actor="ann")
    for number in range(5):
        records.audit(actor="acme/ci", tenant="acme", action="job.submit", subject=f"ftjob-{number}", detail={"n": number})  # fmt: skip
    records.audit(actor="ann", tenant=None, action="platform.upgrade", subject="1.0")
    first = records.audit_lines(tenant="acme", limit=2)
    rest = records.audit_lines(tenant="acme", after=first[-1].seq)
    assert [line.subject for line in (*first, *rest)] == ["ftjob-4", "ftjob-3", "ftjob-2", "ftjob-1", "ftjob-0", "acme"]
    assert first[0].detail == {"n": 4}
    with pytest.raises(NotFoundError):
        records.audit_lines(tenant="other", after=first[0].seq)
    assert len(records.audit_lines()) == 8


def test_lines_of_many_writers_are_one_chain(records):
    def write(who: int) -> None:
        for number in range(5):
            records.audit(actor=f"acme/{who}", tenant="acme", action="job.submit", subject=str(number))

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines, head = records.verify_audit()
    assert (lines, head) == (21, records.audit_lines(limit=1)[0].sha256)


@pytest.mark.parametrize(
    "act",
    [
        "UPDATE audit SET actor = 'nobody' WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "INSERT INTO audit SELECT seq + 1, tenant, actor, action, subject, detail, created_at, previous_sha256, sha256 FROM audit WHERE seq = 3",
    ],
)
def test_the_database_refuses_to_rewrite_the_log(records, act):
    three_lines(records)
    with pytest.raises(UserError), records.write() as db:
        db.exec_driver_sql(act)
    assert records.verify_audit()[0] == 3


@pytest.mark.parametrize(
    ("act", "named"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 2", "line 2 of the audit log"),
        ("UPDATE audit SET tenant = NULL WHERE seq = 1", "line 1 of the audit log"),
        ("UPDATE audit SET detail = '{\"n\":1}' WHERE seq = 3", "line 3 of the audit log"),
        ("DELETE FROM audit WHERE seq = 2", "line 3 of the audit log"),
        ("DELETE FROM audit WHERE seq = 1", "line 2 of the audit log"),
    ],
)
def test_who_drops_the_triggers_and_rewrites_it_is_seen(records, act, named):
    three_lines(records)
    drop_triggers(records)
    with records.write() as db:
        db.exec_driver_sql(act)
    with pytest.raises(IntegrityError, match=named):
        records.verify_audit()


def test_who_cuts_the_end_off_is_seen_by_who_kept_the_head(records):
    three_lines(records)
    before = records.verify_audit()
    drop_triggers(records)
    with records.write() as db:
        db.exec_driver_sql("DELETE FROM audit WHERE seq = 3")
    assert records.verify_audit()[0] == 2 != before[0]


def test_an_empty_log_is_whole(tmp_path):
    empty = Records(open_database(f"sqlite:///{tmp_path / 'empty.db'}").engine)
    assert empty.verify_audit() == (0, GENESIS)
    empty.close()


def three_lines(records: Records) -> None:
    for number in (1, 2):
        records.audit(actor="ann", tenant="acme", action="job.submit", subject=f"ftjob-{number}")


def drop_triggers(records: Records) -> None:
    """As the owner of the database can."""
    with records.write() as db:
        if db.dialect.name == "postgresql":
            db.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER USER")
            return
        for name in db.exec_driver_sql("SELECT name FROM sqlite_master WHERE type='trigger' AND tbl_name='audit'").scalars():  # fmt: skip
            db.exec_driver_sql(f"DROP TRIGGER {name}")
