"""`ft-pipeline export`: whole models made of a version, merged or with fewer bits; and which of them pays on which GPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click

from ft_pipeline import resources
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.show import console, json_option, progress_bars, table
from ft_pipeline.errors import GateRefused, UserError
from ft_pipeline.serve.export import advice
from ft_pipeline.serve.export.formats import FORMATS
from ft_pipeline.serve.export.policy import policy_names


@click.command()
@click.argument("name", metavar="[MODEL]", type=MODEL, required=False)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(sorted(FORMATS)),
    help="Repeat it for several. Default: merged.",
)
@click.option(
    "--algorithm", type=click.Choice(["rtn", "gptq"]), default=None, help="Default: gptq for w8a8 and w4a16, else rtn."
)
@click.option("--group", type=int, default=0, help="w4a16: weights that share a scale. Default: 128.")
@click.option(
    "--calibration-windows", type=int, default=0, help="gptq: training windows that it looks at. Default: 256."
)
@click.option(
    "--policy",
    type=click.Choice(policy_names()),
    default=None,
    help="Fidelity limits. Default: by the recipe's gate policy.",
)
@click.option("--advise", is_flag=True, help="Make nothing: which format pays, in hardware, software and accuracy.")
@click.option("--gpu", default=None, help="With --advise: a kind of GPU, for example h100.")
@json_option
def export(name: str | None, formats: tuple[str, ...], **asked: Any) -> None:  # fmt: skip
    """Export MODEL (`tenant/name`, `tenant/name@N`) as a whole model: a version of its own, `tenant/name-FORMAT`, where it passes.

    Each export goes through the gates of its recipe and is compared with what it was made from. Exit 3 when one is refused.
    """
    if asked["advise"]:
        _advise(name, gpu=asked["gpu"], as_json=asked["as_json"])
        return
    if name is None or asked["gpu"]:
        raise UserError("MODEL is missing" if name is None else f"--gpu {asked['gpu']} without --advise")
    _export(name, formats or ("merged",), asked)


def _export(name: str, formats: tuple[str, ...], asked: dict[str, Any]) -> None:
    from ft_pipeline.cli import launch

    config = {
        "formats": list(formats), "policy": asked["policy"] or "", "algorithm": asked["algorithm"] or "",
        "group": asked["group"], "calibration_windows": asked["calibration_windows"],
    }  # fmt: skip
    with nullcontext(resources.ignore) if asked["as_json"] else progress_bars() as listener:
        house = resources.open_house(listener=listener)
        version = house.catalog.model(name)
        recipe = resources.find_recipe(house.settings, version.line)
        wanted = {"exported_model": {**config, "model": version.label}}
        launch.launch(house, recipe, job_name="export_model", config=wanted)
    rows = [advice.export_row(version.line, made, catalog=house.catalog, store=house.store) for made in formats]
    table(rows, as_json=asked["as_json"], title=f"exports of {version.label}")
    if refused := [row for row in rows if row["verdict"] != "PASS"]:
        raise GateRefused(
            f"{', '.join(row['format'] for row in refused)} of {version.label} is not registered: {refused[0]['why']}",
            why="An export answers only when its gates and its fidelity passed.",
            cure="`ft-pipeline export MODEL --advise` compares the formats; the artifact and its report stay in the store",
        )
    if not asked["as_json"]:
        console.print("Each is served as any version is, once it is in production: `ft-pipeline models`", markup=False)


def _advise(name: str | None, *, gpu: str | None, as_json: bool) -> None:
    measured = {}
    if name:
        house = resources.open_house()
        measured = advice.measured(house.catalog.model(name).line, catalog=house.catalog, store=house.store)
    rows = advice.rows(gpu, measured)
    table(rows, as_json=as_json, title=f"exports on {gpu or 'any GPU'}" + (f", measured for {name}" if name else ""))
    if not as_json:
        for line in advice.lessons():
            console.print(line, markup=False)
