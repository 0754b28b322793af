"""`demo`: the whole road on this machine, from the documentation inside this Python to a served adapter."""

from __future__ import annotations

import time

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console, progress_bars

RECIPE = "demo-docs-router"


@click.command()
@click.option(
    "--recipe", default=RECIPE, show_default=True, help="demo-overfit is the run that the regression gate must stop."
)
def demo(recipe: str) -> None:
    """Run the demo: harvest real text, build a tiny base model, fine-tune it, gate it, register it, serve it. A second run reuses everything."""
    from ft_pipeline.cli.run import run_recipe

    started = time.monotonic()
    prepare(settings.load())
    run_recipe(recipe)
    console.print(f"[dim]{time.monotonic() - started:.0f} s[/dim]")


def prepare(where: settings.Settings) -> None:
    """Makes the demo's data and base model unless they are there."""
    from ft_pipeline.acquire import harvest
    from ft_pipeline.cli import bases

    with progress_bars() as listener:
        if not harvest.is_whole(where.home / "demo"):
            harvest.harvest(where.home / "demo", listener=listener)
        if not (where.home / "bases" / "tiny-docs" / "config.json").is_file():
            bases.build(where, seed=0, steps=None, out=None, listener=listener)
