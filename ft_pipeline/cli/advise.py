"""`ft-pipeline advise`: which technique to try first, from six answers; for a fine-tune a recipe to start from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ft_pipeline.cli.show import console
from ft_pipeline.errors import UserError
from ft_pipeline.planning import advice
from ft_pipeline.store.files import write_atomic

if TYPE_CHECKING:
    from ft_pipeline.planning.advice import Advice, Answers

QUESTIONS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("goal", "What should the model do that it does not do now?", advice.GOALS),
    ("kind", "What do you have?", advice.ROWS),
    ("rows", "How many rows?", {}),
    ("changes_often", "Do the facts behind the answers change by the week?", {"no": "", "yes": ""}),
    ("hardware", "What will it train on?", advice.HARDWARE),
    ("latency", "How fast must an answer come?", advice.LATENCY),
)
DEFAULTS = {
    "goal": "format",
    "kind": "examples",
    "rows": 1000,
    "changes_often": "no",
    "hardware": "80gb",
    "latency": "relaxed",
}
"""Also what --yes takes for what is not said."""


@click.command()
@click.option("--goal", type=click.Choice(list(advice.GOALS)), help="What the model should learn to do.")
@click.option("--have", "kind", type=click.Choice(list(advice.ROWS)), help="What the rows are.")
@click.option("--rows", type=click.IntRange(min=0), help="How many there are.")
@click.option("--changes-often/--changes-seldom", default=None, help="Whether the facts change by the week.")
@click.option("--hardware", type=click.Choice(list(advice.HARDWARE)), help="What it will train on.")
@click.option("--latency", type=click.Choice(list(advice.LATENCY)), help="How fast an answer must come.")
@click.option(
    "--dataset", default="home://rows.jsonl", show_default=True, metavar="URI", help="Written into the recipe."
)
@click.option("--base", metavar="URI", help="Base model of the recipe; left out: one that fits the hardware.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("first.yaml"), show_default=True, help="Where the recipe goes.")  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--yes", is_flag=True, help="Ask nothing: take the default of what is not said.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; asks nothing.")
def advise(*, dataset: str, base: str | None, out: Path, force: bool, yes: bool, as_json: bool, **said: Any) -> None:
    """Which technique should I use? Six questions, one answer with its reason, and for a fine-tune a recipe that `plan` accepts."""
    from ft_pipeline.planning.advice_recipe import Place, recipe_text

    answers = _answers(said, asks=not (yes or as_json))
    found = advice.advise(answers)
    written = None
    if found.technique in advice.FINE_TUNES:
        place = Place(name=_name(out), dataset=dataset, base=base)
        written = _written(out, recipe_text(answers, found.technique, place), force=force)
    if as_json:
        click.echo(
            json.dumps({"answers": asdict(answers), **asdict(found), "recipe": written and str(written)}, indent=2)
        )
        return
    _show(answers, found, written)


def _answers(said: dict[str, Any], *, asks: bool) -> Answers:
    """What was said by options, then what is answered, else the defaults."""
    if said["changes_often"] is not None:
        said["changes_often"] = "yes" if said["changes_often"] else "no"
    values: dict[str, Any] = {}
    for number, (key, question, choices) in enumerate(QUESTIONS, start=1):
        if _pointless(key, values):
            values[key] = 0 if key == "rows" else DEFAULTS[key]
        elif said[key] is not None:
            values[key] = said[key]
        else:
            values[key] = _ask(number, question, (key, choices)) if asks else DEFAULTS[key]
    return advice.Answers(**{**values, "changes_often": values["changes_often"] == "yes"})


def _pointless(key: str, values: dict[str, Any]) -> bool:
    """Nothing has no rows, and whether facts change matters to who asks for facts."""
    return (key == "rows" and values.get("kind") == "none") or (
        key == "changes_often" and values.get("goal") != "facts"
    )


def _ask(number: int, question: str, about: tuple[str, Mapping[str, str]]) -> Any:
    key, choices = about
    console.print(f"\n[bold]{number}[/bold]  {question}")
    if not choices:
        return click.prompt("  rows", default=DEFAULTS[key], type=click.IntRange(min=0))
    width = max(map(len, choices))
    for name, meaning in choices.items():
        if meaning:
            console.print(f"   [cyan]{name:<{width}}[/cyan]  {meaning}")
    return click.prompt(
        "  answer", default=DEFAULTS[key], type=click.Choice(list(choices)), show_choices=not any(choices.values())
    )


def _name(out: Path) -> str:
    """The file's stem as a recipe's name. Raises UserError."""
    from ft_pipeline.recipe import NAME_RULE, is_name

    if not is_name(out.stem):
        raise UserError(f"--out {out}: {out.stem!r} cannot be a recipe's name: {NAME_RULE}", cure="another file name")
    return out.stem


def _written(out: Path, text: str, *, force: bool) -> Path:
    if out.exists() and not force:
        raise UserError(f"{out} is there already", cure="--force writes over it, --out names another file")
    write_atomic(out, text.encode())
    return out


def _show(answers: Answers, found: Advice, written: Path | None) -> None:
    from rich.panel import Panel

    body = f"{found.reason}\n\n[bold]then[/bold]  {found.then}"
    if found.instead:
        body += f"\n[bold]also worth a look[/bold]  {', '.join(found.instead)}"
    console.print()
    console.print(Panel(body, title=f"[bold green]{found.name}[/bold green]", title_align="left", width=min(100, console.width), padding=(1, 2)))  # fmt: skip
    if written:
        tries = f"ft-pipeline plan {written}" + (f" --rows {answers.rows}" if answers.rows else "")
        console.print(
            f"\n[bold]recipe[/bold]   {written}\n[bold]next[/bold]     {tries}\n         ft-pipeline run {written}",
            soft_wrap=True,
        )
    else:
        console.print("\nno recipe: nothing is trained. When there are examples, ask again.")
