"""What the rows of a load say afterwards: waits, lags behind a free place, fairness."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from ft_pipeline.store.platform.rows import Interval


def free_lags(intervals: Sequence[Interval], places: int, tenant_limit: int, *, start: str) -> tuple[list[float], int]:
    """Of each launch: seconds since the platform had a free place, its tenant was below its limit and it was queued, whichever came last."""
    moments = []
    for i in intervals:
        if i.state == "provisioning":
            moments += [(i.started_at, 1, i.tenant), (i.ended_at or "~", -1, i.tenant)]
    entered = {i.started_at: i for i in intervals if i.state == "provisioning"}
    before = {(i.job_id, i.ended_at): i.started_at for i in intervals if i.state == "queued"}
    live, most = 0, 0
    running: Counter[str] = Counter()
    free_since, tenant_since = start, dict[str, str]()
    lags = []
    for moment, change, tenant in sorted(moments):
        if change == 1:
            own = entered[moment]
            since = max(free_since, tenant_since.get(tenant, ""), before.get((own.job_id, moment), ""))
            lags.append(between(since, moment))
        was_full, was_limited = live >= places, running[tenant] >= tenant_limit
        live, most = live + change, max(most, live + change)
        running[tenant] += change
        if was_full and live < places:
            free_since = moment
        if was_limited and running[tenant] < tenant_limit:
            tenant_since[tenant] = moment
    return lags, most


def row(what: str, values: Sequence[float], *, digits: int = 1) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    print(f"{what}: p50 {cuts[49]:.{digits}f} s, p99 {cuts[98]:.{digits}f} s, most {max(values):.{digits}f} s")


def between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
