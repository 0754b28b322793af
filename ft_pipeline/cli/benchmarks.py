"""`benchmarks`: mirrors of official benchmarks, the suites that are built from them, and whether they still are what they were."""

from __future__ import annotations

from typing import Any

import click

from ft_pipeline import resources
from ft_pipeline.acquire import mirror as mirrors
from ft_pipeline.cli.show import console, json_option, progress_bars, table
from ft_pipeline.gate import official
from ft_pipeline.resources import House
from ft_pipeline.store.artifacts import Artifact

TASK = click.argument("task", type=click.Choice([*official.OFFICIAL]))


@click.group()
def benchmarks() -> None:
    """Official benchmarks (MMLU, HellaSwag, ARC, TruthfulQA, GSM8K): fetched once, built once, scored without a network."""


@benchmarks.command("list")
@json_option
def list_known(*, as_json: bool) -> None:
    """The known benchmarks, and what of them is in the store."""
    store, rows = resources.open_house().store, []
    for task, one in official.OFFICIAL.items():
        mirrored, built = official.mirrors(store, one.repo), official.suites(store, task)
        suite = " ".join(m.digest[:12] for m in built)
        number = built[-1].counts["rows"] if built else None
        state = _state(one, bool(mirrored), bool(built))
        rows.append(
            {"task": task, "dataset": one.repo, "metric": one.metric, "suite": suite, "rows": number, "state": state}
        )
    table(rows, as_json=as_json)


@benchmarks.command()
@TASK
@click.option(
    "--revision", default=None, help="Commit, tag or branch on the Hub (default: main, resolved to a commit)."
)
@click.option(
    "--from", "source", default="", help="A copy of the dataset's repository: a folder or s3:// URI. No network."
)
def fetch(task: str, revision: str | None, source: str) -> None:
    """Copy the repository of TASK's dataset, as it is at one commit, into the store."""
    house = resources.open_house()
    repo = official.official(task).repo
    with progress_bars() as listener:
        made = mirrors.fetch(
            repo, settings=house.settings, store=house.store, source=source, revision=revision, listener=listener
        )
    house.catalog.index(made.manifest)
    config = made.manifest.config
    console.print(f"mirror {made.ref.digest[:12]} of {repo} at {config.get('revision') or config['content'][:12]}")
    console.print(f"next: ft-pipeline benchmarks build {task}")


@benchmarks.command()
@TASK
@click.option("--mirror", default="", help="Digest of the mirror, where several are in the store.")
@click.option("--only", default="", help="Subjects of MMLU, separated by commas (default: all 57).")
@click.option(
    "--shots", default=None, type=click.IntRange(min=0), help="Examples before each question (default: the usual)."
)
def build(task: str, *, mirror: str, only: str, shots: int | None) -> None:
    """Render every question of TASK once, with lm-evaluation-harness's definitions, into a suite."""
    house = resources.open_house()
    strata = [s.strip() for s in only.split(",") if s.strip()]
    made = official.build(
        house.store, task, mirror=official.the_mirror(house.store, task, mirror), only=strata, shots=shots
    )
    house.catalog.index(made.manifest)
    _say(task, made, "built")
    console.print(f"in a recipe: benchmarks: [{{name: {task}, task: {task}}}]", markup=False)


@benchmarks.command()
@TASK
@click.option("--suite", default="", help="Digest of the suite, where several are in the store.")
def verify(task: str, suite: str) -> None:
    """Re-hash TASK's suite and mirror, and render it again: the same bytes, or exit 4."""
    house: House = resources.open_house()
    _say(task, official.verify(house.store, official.the_suite(house.store, task, suite)), "is what it was")


def _say(task: str, suite: Artifact, what: str) -> None:
    config: Any = suite.manifest.config
    facts = f"{suite.manifest.counts['rows']:,} rows, {config['shots']} shots, lm_eval {config['lm_eval']}"
    console.print(f"{task}: suite {suite.ref.digest[:12]} {what} ({facts})")


def _state(one: official.Official, mirrored: bool, built: bool) -> str:
    if one.refused:
        return "refused"
    return "ready" if built else "build it" if mirrored else "fetch it"
