"""`import-openai`: check a training file of OpenAI's, and turn the settings of a job into a request and a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ft_pipeline.cli.show import console, table

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("import-openai")
@click.argument("rows", type=FILE)
@click.option("--job", type=FILE, help="JSON of a job: a request, or what `client.fine_tuning.jobs.retrieve` gave.")
@click.option("--model", help="Base model of this platform in place of OpenAI's.")
@click.option("--tenant", default="local", show_default=True, help="Whose model line the recipe is for.")
@click.option("--recipe", "recipe_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the recipe here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def import_openai(rows: Path, *, job: Path | None, model: str | None, tenant: str, recipe_path: Path | None, as_json: bool) -> None:  # fmt: skip
    """Check ROWS as OpenAI's fine-tuning takes them; with --job, say what its settings are here and what differs."""
    from ft_pipeline.web.openai_import import check_file

    told: dict[str, Any] = {"file": str(rows), "report": check_file(rows)}
    if job:
        told |= _converted(rows, job, told["report"]["usable_rows"], wish=(model, tenant))
        if recipe_path:
            _write(recipe_path, told["recipe"])
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    _show(told)


def _converted(rows: Path, job: Path, usable: int, *, wish: tuple[str | None, str]) -> dict[str, Any]:
    from ft_pipeline import settings
    from ft_pipeline.jobs.ask import Rows
    from ft_pipeline.jobs.offer import read_offer
    from ft_pipeline.recipe import identity
    from ft_pipeline.web.openai_import import TRAINING, convert, read_job

    offer = read_offer(settings.load().offer)
    file = Rows(id=TRAINING, uri=str(rows.resolve()), count=usable)
    made = convert(read_job(job), offer, rows=file, model=wish[0], tenant=wish[1])
    return {"request": made.request, "recipe": identity(made.composed.recipe), "differs": list(made.differs)}


def _write(path: Path, recipe: dict[str, Any]) -> None:
    import yaml

    from ft_pipeline.store.files import write_atomic

    write_atomic(path, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=False).encode())


def _show(told: dict[str, Any]) -> None:
    report = told["report"]
    console.print(
        f"{report['usable_rows']:,} of {report['rows']:,} rows can be trained on, about {report['tokens']['total']:,} tokens"
    )
    if report["rejected"]:
        rows = [
            {
                "reason": r["reason"],
                "rows": r["rows"],
                "first": f"line {r['examples'][0]['line']} {r['examples'][0]['path']}",
            }
            for r in report["rejected"]
        ]
        table(rows, as_json=False, title="left out")
    for note in (*report["notes"], *report["warnings"]):
        console.print(f"- {note}", markup=False, soft_wrap=True)
    if "request" in told:
        console.print("\nrequest (upload the file first, its id is training_file):")
        click.echo(json.dumps(told["request"], indent=2))
        console.print("\nwhat differs:")
        for line in told["differs"]:
            console.print(f"- {line}", markup=False, soft_wrap=True)
