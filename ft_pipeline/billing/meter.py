"""Turns intervals into charges: what a job's time was for (useful, replayed, evaluation, waiting), how many GPU seconds, how much money."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from ft_pipeline.planning.prices import Prices
from ft_pipeline.store.platform.rows import Interval, JobStatus

Purpose = Literal["queue", "data", "useful", "replayed", "checkpoint", "preempted", "evaluation"]
PURPOSES: tuple[Purpose, ...] = ("queue", "data", "useful", "replayed", "checkpoint", "preempted", "evaluation")
PURPOSE_OF: Mapping[JobStatus, Purpose] = {
    "queued": "queue", "paused": "queue", "provisioning": "data", "running": "useful", "checkpointing": "checkpoint",
    "preempted": "preempted", "evaluating": "evaluation",
}  # fmt: skip
"""`data`: acquire, curate, encode, and the wait for nodes; no GPU is held. `preempted`: nothing is held."""
ON_GPU: tuple[Purpose, ...] = ("useful", "replayed", "checkpoint", "evaluation")
FREE: tuple[Purpose, ...] = ("queue", "preempted")
BOOKED: Mapping[str, str] = {
    "a100-40gb": "A100-40", "a100-80gb": "A100-80", "h100-80gb": "H100", "h200-141gb": "H200", "l40s-48gb": "L40S",
}  # fmt: skip
"""GPU of a placement (workers/gpus.py) -> its name in the price book."""
Steps = Mapping[str, Mapping[int, tuple[int, int]]]
"""Job -> attempt -> (first, last step)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """A part of a job's time."""

    job_id: str
    tenant: str
    attempt: int
    purpose: Purpose
    started_at: str
    seconds: float
    gpu_seconds: float
    money: float
    """In the price book's currency."""


def charges(
    intervals: Iterable[Interval], steps: Steps, *, prices: Prices, since: str = "", until: str
) -> list[Charge]:
    """The charges for the part of each interval in [since, until); an open interval counts up to `until`.

    A resumed attempt makes the steps after its checkpoint again: that share of its running time is `replayed`, not `useful`.
    """
    found = []
    for interval in intervals:
        start, end = max(interval.started_at, since), min(interval.ended_at or until, until)
        if seconds := max(0.0, _seconds(start, end)):
            made = _charge(interval, prices, started_at=start, seconds=seconds)
            found += _split(made, replayed_share(steps.get(interval.job_id, {}), interval.attempt))
    return found


def replayed_share(attempts: Mapping[int, tuple[int, int]], attempt: int) -> float:
    """Of the steps of an attempt, the share that an earlier one had made."""
    if attempt not in attempts:
        return 0.0
    first, last = attempts[attempt]
    before = max((end for number, (_, end) in attempts.items() if number < attempt), default=first - 1)
    return min(max(0, before - first + 1), last - first + 1) / (last - first + 1)


def total(made: Sequence[Charge], purpose: Purpose | None = None) -> float:
    """Money of the charges, of one purpose where it is named."""
    return sum(c.money for c in made if purpose in (None, c.purpose))


def hourly(prices: Prices, *, gpu: str | None, gpus: int, spot: bool) -> float:
    """Money of an hour of a placement. Raises NotFoundError for a GPU that the book lacks."""
    if gpu is None:
        return gpus * prices.charges.machine_hour
    found = prices.gpu(BOOKED.get(gpu, gpu))
    return gpus * (found.spot if spot else found.on_demand)


def _charge(interval: Interval, prices: Prices, *, started_at: str, seconds: float) -> Charge:
    purpose = PURPOSE_OF[interval.state]
    on_gpu = purpose in ON_GPU
    rate = hourly(prices, gpu=interval.gpu, gpus=interval.gpus, spot=interval.spot) if on_gpu else 0.0
    if purpose == "data":
        rate = prices.charges.machine_hour
    return Charge(
        job_id=interval.job_id, tenant=interval.tenant, attempt=interval.attempt, purpose=purpose, started_at=started_at,
        seconds=seconds, gpu_seconds=seconds * interval.gpus if on_gpu and interval.gpu else 0.0, money=seconds / 3600 * rate,
    )  # fmt: skip


def _split(made: Charge, share: float) -> list[Charge]:
    """A running charge as its useful and its replayed part."""
    if made.purpose != "useful" or share == 0:
        return [made]
    parts: list[tuple[Purpose, float]] = [("useful", 1 - share), ("replayed", share)]
    return [
        replace(
            made, purpose=purpose, seconds=made.seconds * part, gpu_seconds=made.gpu_seconds * part, money=made.money * part
        )
        for purpose, part in parts
        if part
    ]  # fmt: skip


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
