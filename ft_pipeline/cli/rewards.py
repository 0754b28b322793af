"""`rewards`: the built-in reward functions, and the calibration that a recipe's rewards need before training."""

from __future__ import annotations

import sys
from typing import Any

import click

from ft_pipeline import resources, settings
from ft_pipeline.cli.completion import RECIPE
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.rewards.builtin import BUILT_IN
from ft_pipeline.finetune.rewards.calibrate import (
    Calibration,
    calibrate,
    excess,
    measure,
    read_calibration,
    read_probes,
    rewards_by_role,
)
from ft_pipeline.finetune.rewards.function import probes_of
from ft_pipeline.recipe_reinforce import Reward

REFUSED = 3


@click.group()
def rewards() -> None:
    """Reward functions: what is built in, and how often they are wrong on labelled probes."""


@rewards.command("list")
@json_option
def list_built_in(*, as_json: bool) -> None:
    """The built-in reward functions with their calibration on the probes that come with them."""
    home, rows = settings.load().home, []
    for name, function in BUILT_IN.items():
        reward = Reward(name=name)
        report = measure(reward, read_probes(probes_of(reward, home=home)))
        rows.append({"reward": name, **_rates(report), "meaning": (function.__doc__ or "").split("\n")[0]})
    table(rows, as_json=as_json)


@rewards.command("calibrate")
@click.argument("name", metavar="RECIPE", type=RECIPE)
@json_option
def calibrate_recipe(name: str, *, as_json: bool) -> None:
    """Measure every reward of RECIPE on its labelled probes and publish the result; training asks for it. Exit 3 above a limit."""
    house = resources.open_house()
    found = resources.find_recipe(house.settings, name)
    wanted = rewards_by_role(found.finetune.reinforce)
    if not wanted:
        raise RecipeError(
            f"{found.key} has no rewards",
            cure="finetune.reinforce.rewards: [{name: exact_answer}], for grpo and its kin",
        )
    home, shelf = house.settings.home, house.store
    made = [
        (reward, calibrate(shelf, reward, home=home, find=lambda digest: shelf.fetch(house.catalog.ref(digest))))
        for reward in wanted.values()
    ]
    reports = [(reward, artifact, read_calibration(artifact)) for reward, artifact in made]
    for _, artifact, _ in reports:
        house.catalog.index(artifact.manifest)
    faults = [excess(report, reward) or "" for reward, _, report in reports]
    rows = [
        {
            "reward": reward.name,
            **_rates(report),
            "verdict": fault or "within its limits",
            "digest": artifact.ref.digest[:12],
        }
        for (reward, artifact, report), fault in zip(reports, faults, strict=True)
    ]
    table(rows, as_json=as_json, title=found.key)
    if not as_json:
        _show_wrong([report for _, _, report in reports])
    if any(faults):
        sys.exit(REFUSED)


def _rates(report: Calibration) -> dict[str, Any]:
    return {
        "false_pass": f"{report.false_pass}/{report.should_fail}",
        "at_most": report.false_pass_bound,
        "false_fail": f"{report.false_fail}/{report.should_pass}",
        "not_scored": report.not_scored,
    }


def _show_wrong(reports: list[Calibration]) -> None:
    for report in reports:
        for wrong in report.wrong:
            said = "should pass" if wrong["pass"] else "should fail"
            console.print(
                f"probe {wrong['line']} {said}, reward {wrong['reward']}: {wrong['completion'][:100]!r}", markup=False
            )
