"""`ft-pipeline`: the command line. A user's mistake ends with three sentences and an exit code, never with a traceback."""

from __future__ import annotations

import importlib
import sys

import click
from rich.console import Console
from rich.text import Text

from ft_pipeline.errors import FtError, did_you_mean

COMMANDS = {
    "demo": "ft_pipeline.cli.demo",
    "run": "ft_pipeline.cli.run",
    "plan": "ft_pipeline.cli.recipes",
    "recipes": "ft_pipeline.cli.recipes",
    "pin": "ft_pipeline.cli.recipes",
    "models": "ft_pipeline.cli.models",
    "promote": "ft_pipeline.cli.models",
    "rollback": "ft_pipeline.cli.models",
    "history": "ft_pipeline.cli.models",
    "trace": "ft_pipeline.cli.trace",
    "verify": "ft_pipeline.cli.trace",
    "report": "ft_pipeline.cli.models",
    "chat": "ft_pipeline.cli.serving",
    "serve": "ft_pipeline.cli.serving",
    "base": "ft_pipeline.cli.bases",
    "dev": "ft_pipeline.cli.dev",
    "doctor": "ft_pipeline.cli.doctor",
    "catalog": "ft_pipeline.cli.doctor",
    "completion": "ft_pipeline.cli.completion",
}
"""Command -> the module that holds it, imported only when it is called: `--help` answers in a blink."""

EXIT_CODES = """\b
Exit codes: 0 done, 1 failed, 2 your input, 3 the gate refused, 4 stored bytes are damaged,
5 a store or disk does not answer, 42 training failed for good, 75 stopped after a checkpoint
(run again: it resumes), 130 Ctrl-C."""


class LazyGroup(click.Group):
    """Lists all commands, imports one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the road."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest name when there is no such command."""
        if args and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}: {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ft-pipeline")
def cli() -> None:
    """LLM fine-tuning that can be trusted: a dirty dataset and a base model go in, a served, gated, signed adapter comes out."""


def main() -> None:
    """The console script."""
    try:
        code = cli.main(standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        Console(stderr=True).print("stopped; the same command continues where it was", style="yellow")
        code = 130
    except FtError as error:
        show_error(error)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def show_error(error: FtError) -> None:
    """The three sentences on stderr."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text(error.what, style="bold red"))
    if error.why:
        console.print(Text(error.why))
    if error.cure:
        console.print(Text(f"Cure: {error.cure}", style="green"))
