"""Placements, hours and money: every GPU of the price book, 1 to 64 of them, and the cheapest that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from ft_pipeline.finetune.compatibility import cell_of, verdict
from ft_pipeline.finetune.requirements import EXAMPLES
from ft_pipeline.planning.memory import Checkpointing, Memory, Sharding, layout_of, memory
from ft_pipeline.planning.prices import Gpu, Prices
from ft_pipeline.planning.shapes import Shape
from ft_pipeline.planning.work import RECOMPUTED, Work, run_flops, steps
from ft_pipeline.recipe import Recipe
from ft_pipeline.workers.job import Placement

COUNTS = (1, 2, 4, 8, 16, 32, 64)
Market = Literal["spot", "on_demand"]
CHECKPOINT_STEPS, CHECKPOINT_MINUTES = 500, 10.0
"""The defaults of workers/job.Placement: whichever comes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A recipe on some GPUs."""

    gpu: str
    gpus: int
    sharding: Sharding
    checkpointing: Checkpointing
    memory: Memory
    usable: float
    """Bytes of one GPU that training can have."""
    hours: float
    """Of an undisturbed run, start included."""
    step_seconds: float
    tokens_per_second: float
    """Of all GPUs together."""
    on_demand: float
    interruptions: float
    """Expected on spot."""
    lost_hours: float
    """Expected on spot: interruptions x (half the checkpoint interval + restart)."""
    spot: float

    @property
    def fits(self) -> bool:
        """True when the peak is within what training can have."""
        return self.memory.peak <= self.usable

    def price(self, market: Market) -> float:
        """Money of the whole run."""
        return self.spot if market == "spot" else self.on_demand


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a placement is looked for."""

    found: Recipe
    shape: Shape
    work: Work
    prices: Prices
    gpu: str | None = None
    gpus: int | None = None
    within_hours: float | None = None
    market: Market = "spot"


def placements(ask: Ask) -> list[Placed]:
    """The cheapest placement of each kind of GPU that fits, the cheapest first; empty when nothing does."""
    best: dict[str, Placed] = {}
    for tried in _tried(ask):
        if not tried.fits or (ask.within_hours is not None and tried.hours > ask.within_hours):
            continue
        if tried.gpu not in best or tried.price(ask.market) < best[tried.gpu].price(ask.market):
            best[tried.gpu] = tried
    return sorted(best.values(), key=lambda p: (p.price(ask.market), p.gpus))


def nearest(ask: Ask) -> Placed:
    """When there is no placement: the fastest one that fits, else the one with the smallest peak beside its memory."""
    tried = list(_tried(ask))
    fitting = [p for p in tried if p.fits]
    return min(fitting, key=lambda p: p.hours) if fitting else min(tried, key=lambda p: p.memory.peak / p.usable)


def place(ask: Ask, name: str, spot: tuple[int, Sharding, Checkpointing]) -> Placed:
    """The recipe on (count, sharding, checkpointing) of a kind of GPU."""
    gpu, (count, sharding, checkpointing) = ask.prices.gpu(name), spot
    layout = layout_of(ask.found.finetune, sharding=sharding, gpus=count, checkpointing=checkpointing, trained_share=ask.work.trained_share)  # fmt: skip
    needs = memory(ask.shape, layout, tokens=micro_tokens(ask.found))
    seconds = _seconds(ask, gpu, spot)
    number = max(1, steps(ask.found, ask.work.windows))
    hours = seconds / 3600 + ask.prices.assumed.start_minutes / 60
    interruptions, lost = _interruptions(ask.prices, gpu, (hours, count, seconds / number))
    return Placed(
        gpu=name, gpus=count, sharding=sharding, checkpointing=checkpointing, memory=needs, usable=ask.prices.usable(gpu),
        hours=hours, step_seconds=seconds / number, tokens_per_second=ask.work.tokens * ask.found.finetune.epochs / max(seconds, 1e-9),
        on_demand=hours * count * gpu.on_demand, interruptions=interruptions, lost_hours=lost,
        spot=(hours + lost) * count * gpu.spot,
    )  # fmt: skip


def micro_tokens(found: Recipe) -> int:
    """Tokens of one forward pass on one GPU at most: of pairs both answers, of prompts every completion."""
    section, length = found.finetune, found.encode.window_tokens
    if section.reinforce:
        return section.windows_per_micro * section.reinforce.completions * (length + section.reinforce.max_new_tokens)
    return section.windows_per_micro * length * (2 if EXAMPLES.get(section.method) == "pair" else 1)


def micros_per_step(found: Recipe) -> int:
    """Forward passes of one optimizer step over all GPUs: a GPU takes whole ones, so their number must divide it."""
    return found.finetune.windows_per_step // found.finetune.windows_per_micro


def _tried(ask: Ask) -> Iterator[Placed]:
    for name in [ask.gpu] if ask.gpu else ask.prices.gpus:
        for count in [ask.gpus] if ask.gpus else [n for n in COUNTS if micros_per_step(ask.found) % n == 0]:
            for sharding in _shardings(ask.found, count):
                for checkpointing in get_args(Checkpointing):
                    yield place(ask, name, (count, sharding, checkpointing))


def _shardings(found: Recipe, count: int) -> Iterator[Sharding]:
    """What runs by the table of combinations: replicas, ZeRO-1 and 2, FSDP2. Not ZeRO-3: FSDP2 splits the same and gathers in bfloat16."""
    for sharding in ("none", "zero1", "zero2", "fsdp")[: None if count > 1 else 1]:
        cell = cell_of(found.finetune, Placement(device="cuda", processes=count, sharding=sharding))
        if verdict(cell).state != "refused":
            yield sharding


def _seconds(ask: Ask, gpu: Gpu, spot: tuple[int, Sharding, Checkpointing]) -> float:
    """Of computing, all epochs: hardware FLOPs over what the GPUs are assumed to reach."""
    count, sharding, checkpointing = spot
    assumed = ask.prices.assumed
    _, flops = run_flops(ask.shape, ask.found, ask.work, recomputed=RECOMPUTED[checkpointing])
    lora = ask.found.finetune.lora
    reached = assumed.mfu_nf4 if lora and lora.quantize == "nf4" else assumed.mfu
    reached *= assumed.sharding_efficiency[sharding]
    if count > assumed.gpus_per_node:
        reached *= assumed.node_efficiency
    slow = 1 + (assumed.selective_slowdown if checkpointing == "selective" else 0)
    return flops * slow / (count * gpu.tflops * 1e12 * reached) + _rollout_seconds(ask, gpu, count)


def _rollout_seconds(ask: Ask, gpu: Gpu, count: int) -> float:
    """Of sampling completions, all epochs: a token of a micro-batch costs one reading of the weights."""
    section = ask.found.finetune
    if section.reinforce is None:
        return 0
    micros = ask.work.windows * section.epochs / section.windows_per_micro / count
    read = 2 * ask.shape.parameters / (gpu.bandwidth_gbs * 1e9 * ask.prices.assumed.generate_efficiency)
    return micros * section.reinforce.max_new_tokens * read


def checkpoint_hours(step_seconds: float) -> float:
    """Between two checkpoints: the smaller of 500 steps and 10 minutes."""
    return min(CHECKPOINT_STEPS * step_seconds / 3600, CHECKPOINT_MINUTES / 60)


def _interruptions(prices: Prices, gpu: Gpu, run: tuple[float, int, float]) -> tuple[float, float]:
    """(expected interruptions, expected lost hours) of (hours, GPUs, seconds a step): a node lost stops all."""
    hours, count, step_seconds = run
    nodes = max(1, -(-count // prices.assumed.gpus_per_node))
    expected = gpu.interruptions_per_hour * nodes * hours
    return expected, expected * (checkpoint_hours(step_seconds) / 2 + prices.assumed.restart_minutes / 60)


def checkpoint_bytes(shape: Shape, found: Recipe) -> int:
    """Of one checkpoint: trained weights in float32 and two Adam moments, 12 bytes each."""
    lora = found.finetune.lora
    return 12 * (shape.lora_parameters(lora.rank, lora.targets) if lora else shape.parameters)


def evaluation_hours(ask: Ask, placed: Placed) -> float:
    """Of the gate, base and adapter: the holdout generated (bound by reading the weights), the suites scored (bound by FLOPs)."""
    assumed, gpu = ask.prices.assumed, ask.prices.gpu(placed.gpu)
    gate = ask.found.gate
    batches = -(-ask.work.holdout // assumed.generate_batch)
    read = 2 * ask.shape.parameters / (gpu.bandwidth_gbs * 1e9 * assumed.generate_efficiency)
    generated = batches * gate.holdout.max_new_tokens * read
    tokens = len(gate.benchmarks) * assumed.benchmark_items * assumed.benchmark_tokens
    scored = 2 * ask.shape.matmul * tokens / (gpu.tflops * 1e12 * assumed.mfu)
    return 2 * (generated + scored) / placed.gpus / 3600
