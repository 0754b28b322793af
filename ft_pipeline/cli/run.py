"""`ft-pipeline run RECIPE`: the whole road for one recipe."""

from __future__ import annotations

import click

from ft_pipeline.cli.completion import RECIPE
from ft_pipeline.cli.show import console, progress_bars


@click.command()
@click.argument("name", metavar="RECIPE", type=RECIPE)
@click.option(
    "--checkpoint-steps",
    type=click.IntRange(min=1),
    help="Save every N steps (default: the smaller of 500 steps and 10 minutes). Changes no weight.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def run(name: str, checkpoint_steps: int | None, *, as_json: bool) -> None:
    """Run RECIPE from raw rows to a deployed adapter.

    RECIPE is a file, its stem, or `tenant/name`. What has not changed is reused; a run that was stopped resumes.
    """
    run_recipe(name, checkpoint_steps=checkpoint_steps, as_json=as_json)


def run_recipe(name: str, *, checkpoint_steps: int | None = None, as_json: bool = False) -> None:
    """Runs a recipe with progress bars and prints its summary. Raises GateRefused when the gate did not pass."""
    from contextlib import nullcontext
    from dataclasses import replace

    from ft_pipeline import planner
    from ft_pipeline.cli import launch, summary
    from ft_pipeline.cli.plan import summary_lines
    from ft_pipeline.resources import find_recipe, open_house
    from ft_pipeline.workers.messages import ignore

    # with --json nothing but the document may be on stdout
    with nullcontext(ignore) if as_json else progress_bars() as listener:
        house = open_house(listener=listener)
        if checkpoint_steps:
            house = replace(house, placement=replace(house.placement, checkpoint_steps=checkpoint_steps))
        found = find_recipe(house.settings, name)
        made = planner.plan(house, found)
        if not as_json:
            console.print(f"[bold]{found.key}[/bold]  {found.description}")
            for line in summary_lines(made):
                console.print(line, soft_wrap=True)
        ended = launch.launch(house, found)
    summary.show(house, found, ended, as_json=as_json)
    if not ended.passed:
        raise launch.refused(found, ended)
