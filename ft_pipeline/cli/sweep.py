"""`ft-pipeline sweep FILE`: trains the variants of a recipe, ranks them, and writes the winner's recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ft_pipeline.cli.show import console, json_option, progress_bars, table

if TYPE_CHECKING:
    from ft_pipeline.planner import Plan
    from ft_pipeline.recipe import Recipe
    from ft_pipeline.resources import House
    from ft_pipeline.sweeps.design import Sweep, Trial
    from ft_pipeline.sweeps.result import Result
    from ft_pipeline.sweeps.run import Study


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="List the trials, what is reused and what the rest costs. Runs nothing.")
@click.option("--retry", is_flag=True, help="Try trials again that failed for good in an earlier call.")
@json_option
def sweep(file: Path, *, dry_run: bool, retry: bool, as_json: bool) -> None:
    """Train the variants of a recipe that FILE describes, one after the other, and rank them.

    \b
    recipe: NAME_OR_FILE
    method: grid                  # or random, with trials: N and seed: 0
    parameters:
      finetune.learning_rate: [1e-4, 3e-4]      # random: {low: 1e-5, high: 1e-3, log: true}
      finetune.lora.rank: [8, 16]               # random: {low: 4, high: 64, whole: true}
    objective: validation_loss    # or holdout, with stop: gate
    stop: train                   # or gate

    A stopped sweep goes on with the same command. Nothing is registered: run the winner's recipe for that.
    """
    from ft_pipeline.cli import launch
    from ft_pipeline.resources import open_house
    from ft_pipeline.sweeps import run as runs
    from ft_pipeline.sweeps.design import read
    from ft_pipeline.workers.messages import ignore

    said = read(file)
    with nullcontext(ignore) if as_json or dry_run else progress_bars() as listener:
        house = open_house(listener=listener)
        made = runs.study(house, said, base=_base(house, said, file), name=file.stem)
        if dry_run:
            _show_plan(made, as_json=as_json)
            return
        tell = (lambda _trial, _state: None) if as_json else _teller(made)
        result = runs.run(made, make=lambda r, until: launch.launch(house, r, until=until), tell=tell, retry=retry)
    _show(result, as_json=as_json)


def _base(house: House, said: Sweep, file: Path) -> Recipe:
    """The recipe that is varied: a file beside the sweep wins over one of the working folder."""
    from ft_pipeline import recipe
    from ft_pipeline.resources import find_recipe

    beside = file.parent / said.recipe
    return recipe.read(beside) if beside.is_file() else find_recipe(house.settings, said.recipe)


def _teller(made: Study) -> Any:
    from ft_pipeline.sweeps.result import LOST

    def tell(trial: Trial, state: str) -> None:
        colour = "bold" if state == "runs" else "red" if state in LOST else "dim"
        console.print(f"[{colour}]trial {trial.number} of {len(made.trials)}[/]  {trial.label}  [dim]{trial.recipe.key}[/dim]  {state}", soft_wrap=True)  # fmt: skip

    return tell


def _show_plan(made: Study, *, as_json: bool) -> None:
    from ft_pipeline.sweeps.design import cautions
    from ft_pipeline.sweeps.run import planned, state_of

    plans = list(planned(made))
    rows = []
    for trial, plan in plans:
        state = f"same as trial {trial.same_as}" if plan is None else state_of(plan)
        steps = plan.optimizer_steps if plan else None
        rows.append({"trial": trial.number, "model": trial.recipe.key, **trial.parameters, "checkpoints": state, "steps": steps})  # fmt: skip
    to_train = [plan for _, plan in plans if plan and state_of(plan) == "compute"]
    if as_json:
        body = {"recipe": made.base.key, "folder": str(made.folder), "trials": rows, "to_train": len(to_train), "cost": _cost(to_train), "cautions": cautions(made.sweep)}  # fmt: skip
        click.echo(json.dumps(body, indent=2))
        return
    table(rows, as_json=False, title=f"{made.base.key}  {made.sweep.method}, {len(rows)} trials up to {made.until[0]}")
    console.print(f"{len(to_train)} to train, {len(rows) - len(to_train)} reused or the same")
    if line := _cost_line(_cost(to_train)):
        console.print(line, soft_wrap=True)
    _caution(cautions(made.sweep))


def _cost(plans: Sequence[Plan]) -> dict[str, float] | None:
    """The planner's estimates added up; None when the base model's shape is not known yet."""
    estimates = [plan.estimate for plan in plans if plan.estimate]
    if not plans or len(estimates) < len(plans):
        return None
    placed = [e.best for e in estimates if e.best]
    told: dict[str, float] = {
        "tokens": sum(e.tokens for e in estimates),
        "steps": sum(e.steps for e in estimates),
        "model_flops": sum(e.model_flops for e in estimates),
    }
    if len(placed) == len(plans):
        told |= {"hours": sum(p.hours for p in placed), "spot": sum(p.spot for p in placed), "on_demand": sum(p.on_demand for p in placed)}  # fmt: skip
    return told


def _cost_line(cost: dict[str, float] | None) -> str:
    if cost is None:
        return ""
    rented = f"; rented one after the other: {cost['hours']:.2f} h, ${cost['spot']:,.2f} spot, ${cost['on_demand']:,.2f} on demand" if "hours" in cost else ""  # fmt: skip
    return f"[bold]cost[/bold]  {cost['tokens']:,.0f} tokens in {cost['steps']:,.0f} steps, {cost['model_flops']:.1e} FLOPs{rented}"


def _show(result: Result, *, as_json: bool) -> None:
    from ft_pipeline.sweeps.design import cautions
    from ft_pipeline.sweeps.result import PLOT, SUMMARY, WINNER

    if as_json:
        body = json.loads((result.folder / SUMMARY).read_text(encoding="utf-8"))
        click.echo(json.dumps(body | {"folder": str(result.folder)}, indent=2))
        return
    table(_rows(result), as_json=False, title=f"{result.recipe}  by {result.sweep.objective}")
    _caution(cautions(result.sweep))
    console.print(f"[bold]plot[/bold]     {result.folder / PLOT}\n[bold]winner[/bold]   {result.folder / WINNER}", soft_wrap=True)  # fmt: skip
    console.print(f"[bold]next[/bold]     ft-pipeline run {result.folder / WINNER}", soft_wrap=True)


def _rows(result: Result) -> list[dict[str, Any]]:
    from ft_pipeline.sweeps.design import short

    gated = result.sweep.stop == "gate"
    rows = []
    for rank, row in enumerate(result.ranked, start=1):
        rows.append(
            {
                "#": rank if row.digest else "-",
                **dict(zip(short(row.parameters), row.parameters.values(), strict=True)),
                "validation loss": _number(row.validation_loss, ".4f"),
                "perplexity": _number(row.perplexity, ".3f"),
                **({"holdout": _number(row.holdout, ".3f"), "gate": row.verdict or "-"} if gated else {}),
                "seconds": _number(row.seconds, ".1f"),
                "tokens/s": _number(row.tokens_per_second, ",.0f"),
                "state": row.state + (f": {row.reason}" if row.reason else ""),
                "digest": (row.digest or "-")[:12],
            }
        )
    return rows


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _caution(said: Sequence[str]) -> None:
    for line in said:
        console.print(f"[yellow]caution[/yellow]  {line}", soft_wrap=True)
