"""One estimate: memory by part, the cheapest placements, hours, money, and every assumption in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ft_pipeline.planning import cost
from ft_pipeline.planning.cautions import Caution, Planned, cautions
from ft_pipeline.planning.cost import Ask, Placed
from ft_pipeline.planning.memory import GIB, Memory, layout_of, memory
from ft_pipeline.planning.work import run_flops, steps

HERE_GIB = 0.6
"""Python, torch and transformers in one process, before a model is loaded (measured: 0.45 to 0.65)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run will need. Bytes, seconds and money are numbers here; cli/plan.py makes words of them."""

    parameters: int
    trained: int
    tokens: int
    """Of all epochs."""
    steps: int
    model_flops: float
    here: Memory
    """Of one process without sharding or recomputation: a run on this machine."""
    placements: tuple[Placed, ...]
    """The cheapest of each kind of GPU that fits, the cheapest first."""
    nearest: Placed | None
    """When nothing fits: what comes closest."""
    checkpoint_bytes: int
    evaluation_hours: float | None
    cautions: tuple[Caution, ...]
    assumptions: tuple[str, ...]

    @property
    def best(self) -> Placed | None:
        """The cheapest placement that fits."""
        return self.placements[0] if self.placements else None


def estimate(ask: Ask, *, grace_seconds: float = 110) -> Estimate:
    """The estimate of a recipe whose shape and work are known."""
    found, shape, lora = ask.found, ask.shape, ask.found.finetune.lora
    placed = tuple(cost.placements(ask))
    best = placed[0] if placed else None
    gpus = ask.gpus or (best.gpus if best else 1)
    here = memory(
        shape, layout_of(found.finetune, trained_share=ask.work.trained_share), tokens=cost.micro_tokens(found)
    )
    return Estimate(
        parameters=shape.parameters,
        trained=shape.lora_parameters(lora.rank, lora.targets) if lora else shape.parameters,
        tokens=ask.work.tokens * found.finetune.epochs,
        steps=steps(found, ask.work.windows),
        model_flops=run_flops(shape, found, ask.work)[0],
        here=here,
        placements=placed,
        nearest=None if placed else cost.nearest(ask),
        checkpoint_bytes=cost.checkpoint_bytes(shape, found),
        evaluation_hours=cost.evaluation_hours(ask, best) if best else None,
        cautions=cautions(Planned(found=found, shape=shape, work=ask.work, placed=best, gpus=gpus, grace_seconds=grace_seconds)),
        assumptions=tuple(_assumptions(ask)),
    )  # fmt: skip


def _assumptions(ask: Ask) -> Iterator[str]:
    """What the numbers stand on, in the order in which they matter."""
    prices, found = ask.prices, ask.found
    assumed, lora = prices.assumed, found.finetune.lora
    yield f"rows and tokens: {ask.work.known_from}"
    if not ask.work.exact:
        yield f"{ask.work.trained_share:.0%} of the tokens are trained; windows are {assumed.fill:.0%} full"
    mfu = assumed.mfu_nf4 if lora and lora.quantize == "nf4" else assumed.mfu
    yield f"MFU {mfu:.0%} of the dense BF16 peak, less by how the weights are shared ({_shares(assumed.sharding_efficiency)}) and x{assumed.node_efficiency} beyond {assumed.gpus_per_node} GPUs; recomputed FLOPs are paid for"
    yield f"prices of {prices.dated} per GPU and hour, {prices.currency}: " + ", ".join(
        f"{n} {g.on_demand:.2f} ({g.spot:.2f} spot)" for n, g in prices.gpus.items()
    )
    yield f"spot: {', '.join(sorted({f'{g.interruptions_per_hour:g}' for g in prices.gpus.values()}))} interruptions per node and hour; each loses half a checkpoint interval (500 steps or 10 minutes) and {assumed.restart_minutes:g} minutes to restart"
    yield f"a GPU gives training {1 - assumed.fragmentation:.0%} of its memory less {assumed.overhead_gib:g} GiB"
    yield "activations: transformers' Llama layer, attention without a score matrix, the head on trained tokens in chunks"
    yield f"{assumed.start_minutes:g} minutes from machine to first step; the gate: {assumed.generate_batch} rows side by side at {assumed.generate_efficiency:.0%} of the memory bandwidth, {assumed.benchmark_items:,} items a suite"


def _shares(efficiency: object) -> str:
    return ", ".join(f"{n} x{v:g}" for n, v in dict(efficiency).items() if v != 1)  # type: ignore[call-overload]


def here_gib(needs: Memory) -> float:
    """GiB of a run in one process on this machine."""
    return needs.peak / GIB + HERE_GIB
