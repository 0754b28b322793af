"""Which queued jobs go now, and what the others wait for. Pure: the queue at one moment in, a decision out.

Places go round by tenant. Of the tenants that may run more, the one with the smallest share goes first: jobs that it runs (and that
were just released) divided by its tier. Between equal shares the score decides: tier + age / 600 s. So a tenant with 500 jobs holds up
nobody, a tier counts as a weight, and nobody starves: a tenant without a running job has the smallest share there is, and among those
the score grows without bound while it waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ft_pipeline.store.platform.queue import QueueView, Waiting

SECONDS_A_POINT = 600
"""So long a wait counts as much as one more in the tier: of two tiers 10 apart the lower one overtakes after 100 minutes."""
Hold = Callable[[str], str | None]
"""Tenant -> what keeps all its jobs back, in words: a budget that is used up. None: nothing."""


def nothing_held(_tenant: str) -> str | None:
    """Without budgets."""
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What the platform allows."""

    places: int
    """Jobs that run at once."""
    most_releases: int = 25
    """In one tick: each becomes a run that has to be made, and the wishes of others must not wait for all of them."""
    hold: Hold = nothing_held


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Ids in the order in which they go, and for each of the others what it waits for."""

    go: tuple[str, ...]
    waits: Mapping[str, str]


def score(job: Waiting, now: datetime) -> float:
    """Tier + age / 600 s."""
    age = (now - datetime.fromisoformat(job.queued_at)).total_seconds()
    return job.tier + max(age, 0) / SECONDS_A_POINT


def decide(view: QueueView, rules: Rules, *, now: datetime) -> Decision:
    """The decision for this moment. 1,000 jobs of 50 tenants: 10 ms."""
    taken = {job.line: job.id for job in view.running}
    lines = [_Line(tenant, jobs, view, now=now) for tenant, jobs in _by_tenant(view).items()]
    go: list[str] = []
    waits: dict[str, str] = {}
    for tenant in lines:
        if reason := _kept_back(tenant.name, view, rules):
            waits |= dict.fromkeys((job.id for *_, job in tenant.jobs), reason)
            tenant.jobs.clear()
    heap = [(tenant.place, tenant) for tenant in lines if tenant.jobs]
    heapq.heapify(heap)
    free, ahead = min(rules.places - len(view.running), rules.most_releases), 0
    while heap:
        _, tenant = heapq.heappop(heap)
        job = tenant.jobs.pop()[-1]
        if reason := tenant.full or _line_taken(job, taken):
            waits[job.id] = reason
        else:
            if len(go) < free:
                go.append(job.id)
            else:
                waits[job.id] = f"a free place: {len(view.running)} jobs run, {ahead} go before it"
                ahead += 1
            taken[job.line] = job.id
            tenant.running += 1
        if tenant.jobs:
            heapq.heappush(heap, (tenant.place, tenant))
    return Decision(go=tuple(go), waits=waits)


class _Line:
    """One tenant's jobs, the next one last."""

    def __init__(self, name: str, jobs: list[Waiting], view: QueueView, *, now: datetime) -> None:
        self.name, self.limit = name, view.limits.get(name)
        self.jobs = sorted(((-score(job, now), job.queued_at, job.id, job) for job in jobs), reverse=True)
        self.running = sum(job.tenant == name for job in view.running)

    def __lt__(self, other: _Line) -> bool:
        return self.name < other.name

    @property
    def place(self) -> tuple[float, float, str, str]:
        """Where its next job is among those of others: the smallest goes first."""
        lacks, since, name, job = self.jobs[-1]
        return (self.running / max(job.tier, 1), lacks, since, name)

    @property
    def full(self) -> str | None:
        """What its next job waits for when it runs as many as it may."""
        if self.limit is None or self.running < self.limit:
            return None
        return f"one of its tenant's jobs to end: {self.limit} may run at once (concurrent_jobs)"


def _by_tenant(view: QueueView) -> dict[str, list[Waiting]]:
    found: dict[str, list[Waiting]] = {}
    for job in view.waiting:
        found.setdefault(job.tenant, []).append(job)
    return found


def _kept_back(tenant: str, view: QueueView, rules: Rules) -> str | None:
    if tenant in view.suspended:
        return f"its tenant: {tenant} is suspended"
    if view.limits.get(tenant) == 0:
        return "its tenant's limit: no job may run (concurrent_jobs is 0)"
    return rules.hold(tenant)


def _line_taken(job: Waiting, taken: Mapping[str, str]) -> str | None:
    if (other := taken.get(job.line)) is None:
        return None
    return f"{other} to end: one job at a time trains {job.line}"
