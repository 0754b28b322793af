"""Tab completion: of recipe names, of model names, and the script that switches it on."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class


class RecipeName(click.ParamType):
    """A recipe's file, file stem or `tenant/name`."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The stems of the known recipe files."""
        from ft_pipeline import resources, settings

        return [CompletionItem(s) for s in resources.recipe_files(settings.load()) if s.startswith(incomplete)]


class ModelName(click.ParamType):
    """A model line, `tenant/name@N` or `tenant/name:stage`."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The registered versions."""
        from ft_pipeline import settings
        from ft_pipeline.store.catalog import open_catalog

        lines = {f"{m.tenant}/{m.name}" for m in open_catalog(settings.load()).models()}
        return [CompletionItem(line) for line in sorted(lines) if line.startswith(incomplete)]


RECIPE = RecipeName()
MODEL = ModelName()


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script: `eval "$(ft-pipeline completion bash)"` in your shell's start file."""
    from ft_pipeline.cli.main import cli

    made = get_completion_class(shell)
    if made is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(made(cli, {}, "ft-pipeline", "_FT_PIPELINE_COMPLETE").source())
