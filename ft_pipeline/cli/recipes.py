"""`recipes`, `pin`: what can be run, and what it stands on."""

from __future__ import annotations

from pathlib import Path

import click

from ft_pipeline import recipe, resources, settings
from ft_pipeline.cli.completion import RECIPE
from ft_pipeline.cli.show import json_option, table
from ft_pipeline.errors import RecipeError
from ft_pipeline.store.files import write_atomic


@click.command()
@json_option
def recipes(*, as_json: bool) -> None:
    """List the known recipes; a file that is no recipe is listed with the reason."""
    table([_row(stem, path) for stem, path in resources.recipe_files(settings.load()).items()], as_json=as_json)


def _row(stem: str, path: Path) -> dict[str, str]:
    try:
        found = recipe.read(path)
    except RecipeError as error:
        return {"recipe": stem, "model": "-", "base_model": "-", "method": "refused", "description": error.what}
    method = found.finetune.method + (f" lora r{found.finetune.lora.rank}" if found.finetune.lora else " full")
    return {
        "recipe": stem,
        "model": found.key,
        "base_model": found.base_model.uri,
        "method": method,
        "description": found.description,
    }


@click.command()
@click.argument("name", metavar="RECIPE", type=RECIPE)
@click.option("--update", is_flag=True, help="Resolve again and move the pin, although one is there.")
@click.option(
    "--write", is_flag=True, help="Also write `revision:` into the recipe file, so that it holds on every machine."
)
@json_option
def pin(name: str, *, update: bool, write: bool, as_json: bool) -> None:
    """Resolve the base model of RECIPE to an immutable revision (a 40-hex commit on the Hub) and write it down in the catalog."""
    from ft_pipeline.acquire import base_model

    house = resources.open_house()
    found = resources.find_recipe(house.settings, name)
    there = found.base_model.revision or house.catalog.pinned(found.key, found.base_model.uri)
    if there is None or update:
        there = base_model.resolve_revision(found.base_model, settings=house.settings)
        house.catalog.pin(found.key, found.base_model.uri, there)
    if write:
        path = resources.recipe_path(house.settings, name)
        write_atomic(path, pinned_text(path.read_text(encoding="utf-8"), there).encode())
    table([{"recipe": found.key, "base_model": found.base_model.uri, "revision": there}], as_json=as_json)


def pinned_text(text: str, revision: str) -> str:
    """A recipe's YAML with `revision:` below the base model's `uri:`, every comment kept. Raises RecipeError when it has no such line."""
    head, found, rest = text.partition("base_model:\n")
    lines = rest.splitlines(keepends=True)
    size = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith((" ", "#"))), len(lines))
    block = [line for line in lines[:size] if not line.strip().startswith("revision:")]
    place = next((i for i, line in enumerate(block) if line.strip().startswith("uri:")), None)
    if not found or place is None:
        raise RecipeError(
            "the recipe has no `base_model:` block with a `uri:` line", cure=f"write `revision: {revision}` yourself"
        )
    indent = block[place][: len(block[place]) - len(block[place].lstrip())]
    return (
        head
        + found
        + "".join([*block[: place + 1], f"{indent}revision: {revision}\n", *block[place + 1 :], *lines[size:]])
    )
