"""`bump`: a base model moved. What is open, judge a line now, train a line on the new base."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ft_pipeline import resources
from ft_pipeline.cli.completion import MODEL, RECIPE
from ft_pipeline.cli.show import console, json_option, progress_bars, table
from ft_pipeline.errors import NotFoundError, UserError


@click.group()
def bump() -> None:
    """A base model moved: adapters on it are judged again, never trained again by themselves."""


@bump.command("status")
@click.option("--all", "everything", is_flag=True, help="Also the lines whose base did not move.")
@json_option
def status(everything: bool, *, as_json: bool) -> None:
    """One page: every model line whose base moved, its state, and the pools that it holds back."""
    from ft_pipeline.cli import launch
    from ft_pipeline.gate.bump import status as bumps

    house = resources.open_house()
    lines = bumps.dependants(house.catalog, house.store, launch.marks(house.settings, house.catalog.recipe_keys()))
    held = bumps.pools(house.catalog, lines)
    shown = [d for d in lines if everything or d.state != bumps.CURRENT]
    if as_json:
        click.echo(json.dumps({"lines": [asdict(d) for d in shown], "pools": [asdict(p) for p in held]}, indent=2))
        return
    rows = [
        {"model_line": d.key, "version": d.version, "base": f"{d.old_base[:8]} > {d.new_base[:8]}", "state": d.state, "why": d.reason,
         "next": d.next_step}
        for d in shown
    ]  # fmt: skip
    table(rows, as_json=False, empty=f"no base model moved under the {len(lines)} adapters that there are")
    places = [
        {"pool": p.pool, "base": p.base[:8], "may_move_to": p.new_base[:8], "held_back_by": ", ".join(p.blocked_by) or "nothing"}
        for p in held
    ]  # fmt: skip
    if places:
        console.print()
        table(places, as_json=False)


@bump.command("judge")
@click.argument("name", metavar="RECIPE", type=RECIPE)
def judge(name: str) -> None:
    """Fetch the live base of RECIPE and judge its adapter there now, without waiting for the daemon. Trains nothing."""
    from ft_pipeline.cli import launch, summary

    with progress_bars() as listener:
        house = resources.open_house(listener=listener)
        found = resources.find_recipe(house.settings, name)
        house.catalog.head(found.key, "adapter")
        ended = launch.launch(house, found, only=("base_model", "eval_report", "registered_model"))
    artifact = house.store.fetch(house.catalog.head(found.key, "eval_report"))
    summary.show_gates(artifact)
    console.print(f"page: {artifact.file('report.html')}", soft_wrap=True)
    if not ended.passed:
        raise launch.refused(found, ended)


@bump.command("retrain")
@click.argument("key", metavar="MODEL_LINE", type=MODEL)
def retrain(key: str) -> None:
    """Pin MODEL_LINE to the base that is live now and run its recipe: a new adapter, trained there."""
    from ft_pipeline.cli.run import run_recipe
    from ft_pipeline.gate.bump import proposals

    house = resources.open_house()
    found = resources.find_recipe(house.settings, key)
    if found.base_model.revision:
        raise UserError(
            f"the recipe of {key} names its base's revision {found.base_model.revision[:12]} itself",
            why="A recipe that is pinned by hand is moved by hand.",
            cure="write the new revision into the recipe, then `ft-pipeline run` it",
        )
    proposal = next(iter(proposals.proposed(house.catalog, house.store, [found])), None)
    if proposal is None:
        raise NotFoundError(f"no training of {key} is proposed", cure="`ft-pipeline bump status` shows what is")
    proposals.repin(house.catalog, proposal)
    run_recipe(key)
