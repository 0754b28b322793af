"""Who goes next: never over a limit, nobody starves, the order is the same however it is read, and a big tenant holds up no small one."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.jobs.queue import Decision, Rules, decide
from ft_pipeline.store.platform.queue import QueueView, Running, Waiting

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def waiting(name: str, tenant: str, *, tier: int = 10, age: float = 0, line: str | None = None) -> Waiting:
    at = (NOW - timedelta(seconds=age)).isoformat(timespec="microseconds")
    return Waiting(id=name, tenant=tenant, line=line or f"{tenant}/{name}", tier=tier, queued_at=at)


def running(tenant: str, count: int = 1) -> list[Running]:
    return [Running(id=f"{tenant}-live-{n}", tenant=tenant, line=f"{tenant}/live-{n}") for n in range(count)]


def go(view: QueueView, places: int, *, now: datetime = NOW, **rules) -> tuple[str, ...]:
    return decide(view, Rules(places=places, most_releases=10_000, **rules), now=now).go


@st.composite
def views(draw: st.DrawFn) -> QueueView:
    names = [f"t{n}" for n in range(draw(st.integers(1, 6)))]
    jobs = [
        waiting(
            f"j{n}", draw(st.sampled_from(names)), tier=draw(st.sampled_from([1, 10, 10, 20])),
            age=draw(st.integers(0, 100_000)), line=draw(st.sampled_from([None, None, "shared/a", "shared/b"])),
        )
        for n in range(draw(st.integers(0, 30)))
    ]  # fmt: skip
    live = [live for name in names for live in running(name, draw(st.integers(0, 3)))]
    limits = {name: draw(st.sampled_from([None, 0, 1, 2, 5])) for name in names}
    suspended = frozenset(name for name in names if draw(st.integers(0, 5)) == 0)
    return QueueView(waiting=jobs, running=live, limits=limits, suspended=suspended)


@given(views(), st.integers(0, 12))
def test_no_limit_is_ever_passed(view: QueueView, places: int) -> None:
    """Of the platform, of a tenant, of a model line; and each job either goes or is told what it waits for."""
    decision = decide(view, Rules(places=places, hold=lambda t: "money" if t == "t1" else None), now=NOW)
    jobs = {job.id: job for job in view.waiting}
    assert len(decision.go) <= max(places - len(view.running), 0)
    assert set(decision.go) | set(decision.waits) == set(jobs)
    assert not set(decision.go) & set(decision.waits)
    lines = [jobs[name].line for name in decision.go] + [job.line for job in view.running]
    assert len(lines) == len(set(lines))
    for tenant, limit in view.limits.items():
        new = sum(jobs[name].tenant == tenant for name in decision.go)
        have = sum(job.tenant == tenant for job in view.running)
        assert limit is None or new == 0 or new + have <= limit
        assert new == 0 or (tenant not in view.suspended and tenant != "t1")


@given(views(), st.integers(0, 12))
def test_no_place_stays_empty_that_somebody_may_have(view: QueueView, places: int) -> None:
    decision = decide(view, Rules(places=places), now=NOW)
    if len(view.running) + len(decision.go) < places:
        assert not any(reason.startswith("a free place") for reason in decision.waits.values())


@given(views(), st.randoms(use_true_random=False))
def test_the_order_is_that_of_the_jobs_not_of_the_reading(view: QueueView, draw: random.Random) -> None:
    shuffled = list(view.waiting)
    draw.shuffle(shuffled)
    assert go(view, 20) == go(replace(view, waiting=shuffled), 20)


@given(views())
def test_waiting_alone_changes_no_order(view: QueueView) -> None:
    """Everybody grows older alike, so two looks at the same queue agree: what went before goes before."""
    assert go(view, 20) == go(view, 20, now=NOW + timedelta(hours=7))


@given(views(), st.integers(1, 12))
def test_a_smaller_platform_takes_the_first_of_a_bigger_one(view: QueueView, places: int) -> None:
    free = max(places - len(view.running), 0)
    assert go(view, places) == go(view, places + 5)[:free]


@given(st.integers(1, 500), st.integers(0, 5))
def test_500_jobs_of_a_tenant_do_not_hold_up_one_of_another(backlog: int, live: int) -> None:
    """The newcomer goes next, or second where the big tenant runs nothing either."""
    jobs = [waiting(f"big-{n}", "big", age=90_000) for n in range(backlog)] + [waiting("small", "small")]
    view = QueueView(waiting=jobs, running=running("big", live))
    assert "small" in go(view, places=live + (2 if live == 0 else 1))


def test_equal_tenants_take_turns() -> None:
    jobs = [waiting(f"{t}{n}", t, age=1000 - n) for t in "abc" for n in range(4)]
    assert [name[0] for name in go(QueueView(waiting=jobs), 12)] == list("abc") * 4


def test_a_tier_is_a_weight() -> None:
    """Tier 20 gets twice the places of tier 10 while both have jobs."""
    jobs = [waiting(f"gold{n:02}", "gold", tier=20) for n in range(40)]
    jobs += [waiting(f"iron{n:02}", "iron", tier=10) for n in range(40)]
    first = go(QueueView(waiting=jobs), 30)
    assert first[0] == "gold00"
    assert sum(name.startswith("gold") for name in first) == 20


def test_age_overtakes_a_higher_tier() -> None:
    young, old = waiting("young", "gold", tier=20), waiting("old", "iron", tier=10)
    assert go(QueueView(waiting=[young, old]), 1) == ("young",)
    aged = replace(old, queued_at=(NOW - timedelta(minutes=101)).isoformat())
    assert go(QueueView(waiting=[young, aged]), 1) == ("old",)


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_nobody_starves_under_a_stream_of_better_jobs(places: int, limit: int, seed: int) -> None:
    """Every tick a new job of a high tier from a new tenant; jobs end; the three low ones all get their turn."""
    now, draw, poor = NOW, random.Random(seed), [waiting(f"poor{n}", "poor", tier=1) for n in range(3)]
    queue, live, gone = list(poor), [], set()
    for tick in range(100):
        now += timedelta(minutes=30)
        rich = replace(waiting(f"rich{tick}", f"rich{tick}", tier=100), queued_at=now.isoformat())
        queue.append(rich)
        live = [job for job in live if draw.random() < 0.5]
        view = QueueView(waiting=queue, running=live, limits={"poor": limit})
        for name in go(view, places, now=now):
            job = next(job for job in queue if job.id == name)
            queue.remove(job)
            live.append(Running(id=name, tenant=job.tenant, line=job.line))
            gone.add(name)
        if gone >= {job.id for job in poor}:
            return
    pytest.fail(f"waited 50 hours in vain: {[job.id for job in queue if job.tenant == 'poor']}")


def test_each_is_told_what_it_waits_for() -> None:
    jobs = [
        waiting("one", "full"), waiting("two", "off"), waiting("three", "none"), waiting("four", "poor"),
        waiting("five", "lines", line="lines/x", age=9), waiting("six", "lines", line="lines/x"), waiting("seven", "last"),
    ]  # fmt: skip
    view = QueueView(
        waiting=jobs, running=running("full", 2), limits={"full": 2, "none": 0}, suspended=frozenset({"off"})
    )
    held = {"poor": "its budget: 100 of 100 USD are used this month"}
    decision: Decision = decide(view, Rules(places=3, hold=held.get), now=NOW)
    assert decision.go == ("five",)
    assert decision.waits == {
        "one": "one of its tenant's jobs to end: 2 may run at once (concurrent_jobs)",
        "two": "its tenant: off is suspended",
        "three": "its tenant's limit: no job may run (concurrent_jobs is 0)",
        "four": "its budget: 100 of 100 USD are used this month",
        "six": "five to end: one job at a time trains lines/x",
        "seven": "a free place: 2 jobs run, 0 go before it",
    }
