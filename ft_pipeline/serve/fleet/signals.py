"""How busy a pool is, from vLLM's own metrics, and how many replicas would do: a signal for an autoscaler, not an autoscaler."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ft_pipeline.serve.fleet.inventory import Pool
from ft_pipeline.serve.metrics import labels

WAITING_PER_REPLICA = 4.0
"""Requests that may wait; more and the next pass suggests a replica more. As in k8s/serving/autoscaling.yaml."""
CACHE_SHARE = 0.8
"""Of the KV cache: above it vLLM begins to preempt."""
_ROW = re.compile(r"(?P<name>vllm:\w+)(\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One replica."""

    url: str
    running: float = 0.0
    waiting: float = 0.0
    cache_share: float = 0.0
    """Of the KV cache in use, 0 to 1."""
    slots: int = 0
    """`--max-loras`: distinct adapters in one batch; requests of further ones wait. 0: vLLM did not say yet."""
    active: frozenset[str] = frozenset()
    """Adapters of requests that run or wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """One pool."""

    pool: str
    replicas: int
    """Those that answered."""
    running: float
    waiting: float
    cache_share: float
    """Of the fullest replica."""
    adapters_per_slot: float
    """Distinct active adapters over slots of the busiest replica: above 1 requests wait for a slot however idle the GPU is."""
    suggested: int
    why: str


def load_of(url: str, text: str) -> Load:
    """What a replica's `/metrics` says. Gauges of several engines are summed; the fullest cache counts."""
    rows = list(_rows(text))
    lora = [row for name, row, _ in rows if name == "vllm:lora_requests_info"]
    names = {
        n for row in lora[-1:] for k in ("running", "waiting") for n in row.get(f"{k}_lora_adapters", "").split(",")
    }
    return Load(
        url=url,
        running=sum(v for n, _, v in rows if n == "vllm:num_requests_running"),
        waiting=sum(v for n, _, v in rows if n == "vllm:num_requests_waiting"),
        cache_share=max((v for n, _, v in rows if n == "vllm:kv_cache_usage_perc"), default=0.0),
        slots=max((int(row["max_lora"]) for row in lora if row.get("max_lora", "").isdigit()), default=0),
        active=frozenset(names - {""}),
    )


def signal_of(pool: Pool, loads: Sequence[Load]) -> Signal:
    """How many replicas the pool needs now: the largest of what each signal asks for, within the pool's bounds.

    As an autoscaler computes it: replicas now, times value over target, rounded up. Scaling down slowly is the autoscaler's business.
    """
    count = len(loads)
    waiting, fullest = sum(x.waiting for x in loads), max((x.cache_share for x in loads), default=0.0)
    per_slot = max((len(x.active) / x.slots for x in loads if x.slots), default=0.0)
    wants = {
        "nobody waits": 1,
        f"{waiting:g} wait": math.ceil(waiting / WAITING_PER_REPLICA),
        f"KV cache {fullest:.0%} full": math.ceil(count * fullest / CACHE_SHARE) if fullest > 0.5 * CACHE_SHARE else 0,
        f"{per_slot:.1f} adapters per slot": math.ceil(count * per_slot) if per_slot > 1 else 0,
    }
    if waiting:
        wants[f"{waiting:g} wait"] += count  # they wait although the replicas that are there work
    why, most = max(wants.items(), key=lambda item: item[1])
    return Signal(
        pool=pool.name, replicas=count, running=sum(x.running for x in loads), waiting=waiting, cache_share=fullest,
        adapters_per_slot=per_slot, suggested=min(pool.max_replicas, max(pool.min_replicas, most)), why=why,
    )  # fmt: skip


def exposition(signals: Iterable[Signal], loads: Mapping[str, Sequence[Load]]) -> str:
    """Prometheus' text of all pools. Gauges."""
    gauges: dict[str, list[str]] = {}

    def add(name: str, value: float, **where: str) -> None:
        gauges.setdefault(name, []).append(f"{name}{{{labels(**where)}}} {value:g}")

    for signal in signals:
        add("ft_fleet_suggested_replicas", signal.suggested, pool=signal.pool)
        add("ft_fleet_replicas", signal.replicas, pool=signal.pool)
        add("ft_fleet_adapters_per_slot", signal.adapters_per_slot, pool=signal.pool)
        for load in loads.get(signal.pool, ()):
            where = {"pool": signal.pool, "replica": load.url}
            add("ft_fleet_requests_waiting", load.waiting, **where)
            add("ft_fleet_requests_running", load.running, **where)
            add("ft_fleet_kv_cache_share", load.cache_share, **where)
    return "\n".join(line for name, rows in sorted(gauges.items()) for line in (f"# TYPE {name} gauge", *rows)) + "\n"


def _rows(text: str) -> Iterable[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        if found := _ROW.fullmatch(line):
            yield found["name"], dict(_LABEL.findall(found["labels"] or "")), float(found["value"])
