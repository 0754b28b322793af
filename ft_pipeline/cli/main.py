"""`ft-pipeline`: the command line. A user's mistake ends with three sentences and an exit code, never with a traceback."""

from __future__ import annotations

import importlib
import sys

import click
from rich.console import Console
from rich.text import Text

from ft_pipeline.errors import FtError, did_you_mean

COMMANDS = {
    "demo": ("demo", "Run the demo: real text, a tiny base model, every gate."),
    "run": ("run", "Run a recipe from raw rows to a deployed adapter."),
    "plan": ("plan", "Check a recipe; say what a run would reuse, need and cost."),
    "sweep": ("sweep", "Train the variants of a recipe and rank them."),
    "advise": ("advise", "Which technique should I use? Six questions, one answer, a recipe."),
    "recipes": ("recipes", "List the known recipes."),
    "pin": ("recipes", "Resolve a recipe's base model to an immutable revision."),
    "benchmarks": ("benchmarks", "Mirror official benchmarks, build and verify their suites."),
    "rewards": ("rewards", "Reward functions: what is built in, and how often they are wrong."),
    "models": ("models", "List the registered versions."),
    "promote": ("models", "Move a version to the next stage."),
    "approve": ("models", "Bring a version to production as the second person."),
    "approvals": ("models", "List what waits for a second person."),
    "rollback": ("models", "Bring the previous production version back."),
    "override": ("override", "Overrule a gate, with a signed reason."),
    "history": ("models", "Show every stage transition of a model line."),
    "datasets": ("data", "List the curated datasets of this store."),
    "import-openai": ("import_openai", "Check OpenAI training rows and job settings; say what differs here."),
    "files": ("files", "Uploaded files: delete bytes that nobody uses."),
    "data": ("judge_data", "Preference pairs labelled by a judge."),
    "diff": ("data", "What is other in one curated dataset than in another, row by row."),
    "trace": ("trace", "From a model to the raw bytes, from a row to its adapters."),
    "verify": ("trace", "Re-hash everything from a model to the raw bytes."),
    "lineage": ("lineage_page", "Draw what a model was made of, as an HTML page."),
    "export": ("export", "Whole models of a version: merged, int8, int4, fp8; which one pays."),
    "export-evidence": ("evidence", "Everything that backs a version in a zip that verifies offline."),
    "forget": ("forget", "Take rows down: what is affected, what to do, when it is done."),
    "bump": ("bump", "A base model moved: who is judged again, decided, held back."),
    "report": ("models", "Show the newest gate report of a model line."),
    "chat": ("serving", "Talk to a model."),
    "serve": ("serving", "Serve every production adapter, OpenAI-compatible."),
    "fleet": ("fleet", "vLLM replicas: what they hold, and bringing them to what the catalog says."),
    "gateway": ("gateway", "The door to the vLLM fleet: keys, names, replicas."),
    "serve-api": ("serve_api", "Serve the platform API of many tenants: files, jobs, models, chat."),
    "tenants": ("tenants", "Tenants of the platform: keys, limits, audit log."),
    "base": ("bases", "Base models made on this machine."),
    "usage": ("usage", "What tenants used in a month and what it costs."),
    "dev": ("dev", "Start the Dagster and MLflow UIs and the platform API on localhost."),
    "k8s": ("k8s", "Manifests of a run: render, check, diff; and is the cluster ready."),
    "doctor": ("doctor", "Check this installation and what it is connected to."),
    "catalog": ("doctor", "The SQL index over the store."),
    "completion": ("completion", "Print the tab completion script of a shell."),
}
"""Command -> its module in this folder, imported only when it is called, and its line in the help: `--help` answers in a blink."""

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
        return getattr(importlib.import_module(f"ft_pipeline.cli.{COMMANDS[cmd_name][0]}"), cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The lines of the help, without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

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
        code = cli.main(prog_name="ft-pipeline", standalone_mode=False) or 0
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
