"""`ft-pipeline plan RECIPE`: what a run would reuse and compute, what it needs and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.table import Table

from ft_pipeline import recipe, resources
from ft_pipeline.cli.completion import RECIPE
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.errors import UserError

if TYPE_CHECKING:
    from ft_pipeline.planner import Plan
    from ft_pipeline.planning.cost import Placed
    from ft_pipeline.planning.estimate import Estimate
    from ft_pipeline.planning.memory import Memory

GIB = 1 << 30
UNKNOWN = (
    "The base model's shape is not known before it is in the store: `ft-pipeline pin`, or a config.json, tells it."
)


@click.command()
@click.argument("name", metavar="RECIPE", type=RECIPE)
@click.option("--gpu", metavar="KIND[xN]", help="Only this GPU of the price book, for example H100 or A100-80x8.")
@click.option("--within", "within_hours", type=click.FloatRange(min=0, min_open=True), metavar="HOURS", help="Only placements that end in time.")  # fmt: skip
@click.option("--market", type=click.Choice(["spot", "on-demand"]), default="spot", show_default=True, help="By which price the cheapest is chosen.")  # fmt: skip
@click.option("--rows", type=click.IntRange(min=1), help="Raw rows, when they are not here yet: nothing has to be.")
@click.option("--row-tokens", type=click.IntRange(min=1), help="Mean tokens of a row.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Model FLOPs utilisation instead of the price book's.")  # fmt: skip
@json_option
def plan(name: str, *, gpu: str | None, market: str, as_json: bool, **said: float | None) -> None:
    """Check RECIPE and say what a run would reuse and compute, and what it needs: memory by part, GPUs, hours, money. Runs nothing.

    Prices and assumptions are in the price book: FT_PRICES names your own.
    """
    from ft_pipeline import planner
    from ft_pipeline.planning.sources import Wish

    kind, count = _gpu(gpu)
    wish = Wish(gpu=kind, gpus=count, market="spot" if market == "spot" else "on_demand", **said)  # type: ignore[arg-type]
    house = resources.open_house()
    found = resources.find_recipe(house.settings, name)
    made = planner.plan(house, found, wish)
    digest = recipe.recipe_sha256(found)
    if as_json:
        click.echo(json.dumps({"recipe": found.key, "recipe_sha256": digest, **asdict(made)}, indent=2))
        return
    console.print(f"[bold]{found.key}[/bold]  recipe {digest[:12]}\n")
    table([asdict(step) for step in made.steps], as_json=False)
    _show(made)


def _gpu(said: str | None) -> tuple[str | None, int | None]:
    """(kind, count) of `H100`, `H100x8`; A100-80x4 has its count behind the last x."""
    if said is None:
        return None, None
    kind, _, count = said.rpartition("x")
    if kind and count.isdecimal():
        if int(count) < 1:
            raise UserError(f"--gpu {said}: {count} GPUs", cure="at least one: H100x1")
        return kind, int(count)
    return said, None


def summary_lines(made: Plan) -> Iterator[str]:
    """The plan in two lines, as `run` shows it first."""
    if made.estimate is None:
        return
    from ft_pipeline.planning.estimate import here_gib

    found, best = made.estimate, made.estimate.best
    yield f"[bold]memory[/bold]   {here_gib(found.here):.1f} GiB in one process here  [dim]{_parts(found.here)}[/dim]"
    on = f"; rented: {_name(best)} {_time(best.hours)}, {_money(best.spot)} spot, {_money(best.on_demand)} on demand" if best else "; no GPU of the price book fits"  # fmt: skip
    yield f"[bold]cost[/bold]     {_count(found.tokens)} tokens in {found.steps:,} steps, {found.model_flops:.1e} FLOPs{on}"


def _show(made: Plan) -> None:
    found = made.estimate
    if found is None:
        console.print(f"\n{UNKNOWN}")
        return
    console.print(
        f"\n[bold]model[/bold]    {_count(found.parameters)} parameters, {_count(found.trained)} of them trained  [dim]shape: {made.shape_from}[/dim]\n"
        f"[bold]work[/bold]     {_count(found.tokens)} tokens, {found.steps:,} steps, {found.model_flops:.2e} FLOPs\n"
        f"[bold]disk[/bold]     {_bytes(found.checkpoint_bytes)} a checkpoint"
        + (f"\n[bold]gate[/bold]     about {_time(found.evaluation_hours)} on the same GPUs" if found.evaluation_hours is not None else "")
    )  # fmt: skip
    if found.best:
        _memory(found.best)
        _placements(found)
    elif found.nearest:
        _nothing_fits(found.nearest)
    _said(found)


def _memory(best: Placed) -> None:
    """The parts of one GPU as bars of the peak's length."""
    needs = best.memory
    console.print(f"\n[bold]memory of one GPU[/bold]  {_name(best)}, {_how(best)}")
    drawn = Table(box=None, pad_edge=False, show_header=False)
    for style in ("none", "cyan", "dim"):
        drawn.add_column(justify="right" if style == "cyan" else "left", style=style)
    largest = max(needs.peak, best.usable)
    for label, value, note in _rows(needs):
        drawn.add_row(f"  {label}", _bytes(value), "\u2588" * round(40 * value / largest) + f" {note}")
    drawn.add_row(
        "  [bold]peak[/bold]", f"[bold]{_bytes(needs.peak)}[/bold]", f"of {_bytes(best.usable)} that training can have"
    )
    console.print(drawn)


def _rows(needs: Memory) -> Iterator[tuple[str, float, str]]:
    yield "weights", needs.weights, ""
    yield "gradients", needs.gradients, ""
    yield "optimiser", needs.optimizer, ""
    if needs.working:
        yield "working copies", needs.working, ""
    yield "activations", needs.activations, "all layers"
    yield "one layer", needs.recomputed, "in its backward pass"
    yield "head and loss", needs.head, ""


def _placements(found: Estimate) -> None:
    console.print("\n[bold]the cheapest placement of each GPU that fits[/bold]")
    table(
        [
            {
                "gpu": ("> " if n == 0 else "  ") + _name(p),
                "how": _how(p),
                "peak": _bytes(p.memory.peak),
                "time": _time(p.hours),
                "tokens/s": round(p.tokens_per_second),
                "on demand": _money(p.on_demand),
                "spot": _money(p.spot),
                "interruptions": f"{p.interruptions:.2g} expected, {_time(p.lost_hours)} lost",
            }
            for n, p in enumerate(found.placements)
        ],
        as_json=False,
    )


def _nothing_fits(near: Placed) -> None:
    if near.fits:
        console.print(
            f"\n[bold red]no placement ends in time[/bold red]  the fastest is {_name(near)}, {_how(near)}: {_time(near.hours)}\n"
            "[green]Cure: a longer --within, or more micro-batches a step for more GPUs[/green]"
        )
        return
    console.print(
        f"\n[bold red]no placement fits[/bold red]  the nearest is {_name(near)}, {_how(near)}: "
        f"{_bytes(near.memory.peak)} of {_bytes(near.usable)} ({_parts(near.memory)})\n"
        "[green]Cure: a smaller windows_per_micro or encode.window_tokens, LoRA or nf4, or more micro-batches a step for more GPUs[/green]"
    )


def _said(found: Estimate) -> None:
    for caution in found.cautions:
        console.print(f"\n[yellow]{caution.code}[/yellow]  {caution.text}", soft_wrap=True)
        console.print(f"  [green]{caution.cure}[/green]", soft_wrap=True)
    console.print("\n[dim]assumed[/dim]")
    for line in found.assumptions:
        console.print(f"  - {line}", style="dim", markup=False, soft_wrap=True)


def _parts(needs: Memory) -> str:
    return f"weights {_bytes(needs.weights)}, gradients {_bytes(needs.gradients)}, optimiser {_bytes(needs.optimizer)}, activations {_bytes(needs.activations + needs.recomputed)}, head {_bytes(needs.head)}"


def _name(placed: Placed) -> str:
    return f"{placed.gpus} x {placed.gpu}"


def _how(placed: Placed) -> str:
    shared = {"none": "one replica each" if placed.gpus > 1 else "one process", "fsdp": "FSDP"}.get(placed.sharding, f"ZeRO-{placed.sharding[-1]}")  # fmt: skip
    return shared + ("" if placed.checkpointing == "none" else f", {placed.checkpointing} checkpointing")


def _bytes(value: float) -> str:
    return f"{value / GIB:,.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:,.1f} MiB"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _money(value: float) -> str:
    return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"


def _count(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"
