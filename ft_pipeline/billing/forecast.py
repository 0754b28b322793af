"""What a job will cost, said at submission: from the plan where GPUs are asked for, else from what steps took before. Written into the job's row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ft_pipeline.billing.meter import BOOKED, hourly
from ft_pipeline.planner import Plan
from ft_pipeline.planning.prices import Prices
from ft_pipeline.store.platform.rows import Interval, TrainingJob
from ft_pipeline.workers.job import Placement

MANY = 20
"""Earlier jobs that are looked at, newest first."""


Past = Sequence[tuple[TrainingJob, Sequence[Interval]]]
"""Earlier jobs, newest first, each with its intervals."""


def forecast(plan: Plan, placement: Placement, *, prices: Prices, past: Past = ()) -> dict[str, Any]:
    """{steps, tokens, hours, money, currency, gpu, gpus, market, from}. hours and money are None where nothing can be said.

    With a GPU: the planner's hours on the placement that was asked for, or on the cheapest that fits; the gate's hours on top. Without
    one: the median of what a step took in `past`, jobs of the same base on as many processes. Reused artifacts cost nothing: the caller
    sees in the plan which those are.
    """
    made, steps = plan.estimate, plan.optimizer_steps
    said: dict[str, Any] = {
        "steps": steps if steps is not None else (made.steps if made else None),
        "tokens": made.tokens if made else None,
        "currency": prices.currency,
        "gpu": placement.gpu,
        "gpus": placement.world,
        "market": "spot" if placement.spot else "on_demand",
        "hours": None,
        "money": None,
        "from": "nothing to go by: the base model's shape is not known here",
    }
    if placement.gpu is None:
        return said | _from_past(said["steps"], placement, prices=prices, past=past)
    booked = BOOKED.get(placement.gpu, placement.gpu)
    placed = next((p for p in made.placements if p.gpu == booked), None) if made else None
    if placed is None or made is None:
        return said | ({"from": f"the plan finds no placement of {placement.gpu} that fits"} if made else {})
    hours = placed.hours + (placed.lost_hours if placement.spot else 0.0) + (made.evaluation_hours or 0.0)
    rate = hourly(prices, gpu=placement.gpu, gpus=placement.world, spot=placement.spot)
    share = placed.gpus / placement.world
    return said | {
        "hours": round(hours * share, 4),
        "money": round(hours * share * rate, 4),
        "from": f"the plan on {placed.gpus} {booked}, taken to {placement.world}",
    }


def _from_past(steps: int | None, placement: Placement, *, prices: Prices, past: Past) -> dict[str, Any]:
    """Hours and money of a job without a GPU."""
    known = [s for job, spent in past[:MANY] if (s := _step_seconds(job, spent, placement)) is not None]
    if not known:
        return {"from": "no earlier job like it has succeeded"}
    each, fixed = statistics.median(k[0] for k in known), statistics.median(k[1] for k in known)
    if steps is None:
        return {"from": "the number of steps is known once the data is curated"}
    hours = (each * steps + fixed) / 3600
    return {
        "hours": round(hours, 4),
        "money": round(hours * hourly(prices, gpu=None, gpus=placement.world, spot=False), 4),
        "from": f"the median of {len(known)} earlier jobs: {each:.3g} s a step and {fixed:.3g} s for the data rooms and the gate",
    }


def _step_seconds(job: TrainingJob, spent: Sequence[Interval], placement: Placement) -> tuple[float, float] | None:
    """(seconds a step, seconds of one launch's data rooms and gate) of a job that succeeded on a like placement."""
    alike = not job.placement.get("gpu") and int(job.placement.get("processes") or 1) == placement.processes
    if job.status != "succeeded" or not alike or not job.step:
        return None
    training = sum(_seconds(i) for i in spent if i.state in ("running", "checkpointing"))
    around = sum(_seconds(i) for i in spent if i.state in ("provisioning", "evaluating"))
    return training / job.step, around / max(job.attempt, 1)


def _seconds(interval: Interval) -> float:
    if interval.ended_at is None:
        return 0.0
    return (datetime.fromisoformat(interval.ended_at) - datetime.fromisoformat(interval.started_at)).total_seconds()
