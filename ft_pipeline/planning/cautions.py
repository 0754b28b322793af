"""What experience says against a recipe: each caution is a value with a code, a sentence and a cure. Nothing is refused here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ft_pipeline.finetune.requirements import EXAMPLES
from ft_pipeline.planning.cost import Placed, checkpoint_bytes, micros_per_step
from ft_pipeline.planning.shapes import Shape
from ft_pipeline.planning.work import Work
from ft_pipeline.recipe import Recipe

MANY_ROWS = 10_000
FEW_HOLDOUT = 200
BIG = 13e9
"""Parameters from which on a host's memory is not enough for a copy per process."""
SMALL = 5e8
"""Parameters below which learning rates of 7 B models say nothing."""
RATES: Mapping[str, tuple[float, float]] = {
    "full": (1e-5, 5e-5), "lora": (1e-4, 5e-4), "cpt full": (1e-5, 5e-5), "cpt lora": (5e-5, 5e-4),
    "preference full": (1e-7, 5e-6), "preference lora": (5e-7, 5e-5), "reward full": (1e-6, 2e-5), "reward lora": (1e-5, 2e-4),
    "policy full": (5e-7, 5e-6), "policy lora": (1e-6, 1e-4),
}  # fmt: skip
"""Usual learning rates of 7 to 70 B models, lowest and highest."""
DISK_BYTES_PER_SECOND = 1e9
"""Assumed of a checkpoint that is written before a machine goes away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caution:
    """One sentence of experience."""

    code: str
    text: str
    cure: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What the rules look at."""

    found: Recipe
    shape: Shape | None
    work: Work
    placed: Placed | None
    gpus: int = 1
    """Asked for or chosen."""
    grace_seconds: float = 110


def cautions(planned: Planned) -> tuple[Caution, ...]:
    """Every rule that speaks, in the order of RULES."""
    return tuple(said for rule in RULES for said in rule(planned))


def kind_of(found: Recipe) -> str:
    """Row of RATES that a recipe belongs to."""
    section = found.finetune
    width = "lora" if section.lora else "full"
    if section.method in ("reward", "process_reward"):
        return f"reward {width}"
    if section.method in EXAMPLES:
        return f"preference {width}"
    if section.method in ("sft", "distill"):
        return width
    return f"{'cpt' if section.method == 'cpt' else 'policy'} {width}"


def _epochs(p: Planned) -> Iterator[Caution]:
    epochs = p.found.finetune.epochs
    if epochs > 1 and p.work.rows > MANY_ROWS:
        yield Caution(
            code="epochs",
            text=f"{epochs} epochs over {p.work.rows:,} rows: above {MANY_ROWS:,} rows one is usually best; a second on Alpaca's 50 k made models worse",
            cure="finetune.epochs: 1; more rows teach more than more rounds",
        )


def _alpha(p: Planned) -> Iterator[Caution]:
    lora = p.found.finetune.lora
    if lora and lora.alpha != 2 * lora.rank and not lora.rslora:
        yield Caution(
            code="alpha",
            text=f"alpha {lora.alpha} at rank {lora.rank}: the habit is alpha = 2 x rank, which leaves the scale of the update as it is when the rank changes",
            cure=f"finetune.lora.alpha: {2 * lora.rank}, unless a paper that you follow says so",
        )


def _targets(p: Planned) -> Iterator[Caution]:
    lora = p.found.finetune.lora
    if lora and lora.targets != "all-linear":
        yield Caution(
            code="targets",
            text=f"LoRA on {', '.join(lora.targets)} only: adapting every linear layer gains more than any rank does",
            cure="finetune.lora.targets: all-linear",
        )


def _rate(p: Planned) -> Iterator[Caution]:
    kind, rate = kind_of(p.found), p.found.finetune.learning_rate
    low, high = RATES[kind]
    if p.shape and p.shape.parameters < SMALL:
        return
    if not low <= rate <= high:
        yield Caution(
            code="learning_rate",
            text=f"learning rate {rate:g}: {p.found.finetune.method} ({'LoRA' if p.found.finetune.lora else 'every weight'}) usually takes {low:g} to {high:g}",
            cure=f"finetune.learning_rate between {low:g} and {high:g}",
        )


def _host_memory(p: Planned) -> Iterator[Caution]:
    if p.shape and p.shape.parameters > BIG and p.gpus > 1:
        each = 2 * p.shape.parameters * min(p.gpus, 8) / 1e9
        yield Caution(
            code="host_memory",
            text=f"{p.shape.parameters / 1e9:.0f} B parameters loaded by {min(p.gpus, 8)} processes of a node take {each:,.0f} GB of its main memory; hosts have 256 to 512",
            cure="build on the meta device and read the weights shard by shard (FSDP cpu_ram_efficient_loading, zero3_init_flag)",
        )


def _holdout(p: Planned) -> Iterator[Caution]:
    if p.found.gate.policy != "dev" and p.work.holdout < FEW_HOLDOUT:
        yield Caution(
            code="holdout",
            text=f"{p.work.holdout} rows in the holdout: under {FEW_HOLDOUT} the gate cannot tell a gain from chance and will say INCONCLUSIVE",
            cure="a larger curate.splits.holdout, or more rows",
        )


def _grace(p: Planned) -> Iterator[Caution]:
    if not p.placed or not p.shape:
        return
    save = checkpoint_bytes(p.shape, p.found) / max(1, p.placed.gpus) / DISK_BYTES_PER_SECOND
    allowed = (p.grace_seconds - save) / 2
    if p.placed.step_seconds > allowed:
        yield Caution(
            code="grace",
            text=f"a step takes {p.placed.step_seconds:.0f} s and a save {save:.0f} s: a stop is heard after up to two steps, and spot machines go {p.grace_seconds:.0f} s after they warn",
            cure="a smaller windows_per_step, or more GPUs",
        )


def _micros(p: Planned) -> Iterator[Caution]:
    micros = micros_per_step(p.found)
    if micros % p.gpus:
        yield Caution(
            code="micro_batches",
            text=f"{p.gpus} GPUs do not divide the {micros} micro-batches of a step (windows_per_step / windows_per_micro): such a run is refused",
            cure="windows_per_step: a multiple of windows_per_micro x GPUs",
        )


def _new_knowledge(p: Planned) -> Iterator[Caution]:
    lora = p.found.finetune.lora
    if p.found.finetune.method == "cpt" and lora and lora.rank < 128:
        yield Caution(
            code="cpt_rank",
            text=f"continued pre-training at rank {lora.rank}: new knowledge and vocabulary need full weights or a high rank (ChipNeMo: 13 B, 23 B tokens, all weights)",
            cure="finetune.lora: null, or rank 128 and more",
        )


def _unguarded(p: Planned) -> Iterator[Caution]:
    if p.found.gate.safety is None and p.found.gate.policy != "dev":
        yield Caution(
            code="safety",
            text="no safety gate: ten bad examples, for less than 0.20 dollars, took a chat model's refusals from 100% to 1%",
            cure="gate.safety with prompts that must be refused, and ones that must not",
        )


def _too_few(p: Planned) -> Iterator[Caution]:
    section = p.found.finetune
    if 0 < p.work.windows < section.windows_per_step:
        yield Caution(
            code="few_windows",
            text=f"{p.work.windows} windows in an epoch, {section.windows_per_step} in a step: such a run is refused",
            cure="a smaller windows_per_step or encode.window_tokens, or more rows",
        )


RULES: tuple[Callable[[Planned], Iterator[Caution]], ...] = (
    _epochs, _alpha, _targets, _rate, _new_knowledge, _holdout, _unguarded, _too_few, _micros, _host_memory, _grace,
)  # fmt: skip
