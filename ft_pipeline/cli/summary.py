"""What a run ends with: rows, windows, loss, holdout, gates, version, lineage, and what to try next."""

from __future__ import annotations

import json
from typing import Any

import click
import rich.markup

from ft_pipeline import lineage
from ft_pipeline.cli.launch import Launched
from ft_pipeline.cli.show import console, sparkline
from ft_pipeline.cli.trace import drawn
from ft_pipeline.recipe import Recipe
from ft_pipeline.resources import House
from ft_pipeline.store.artifacts import Artifact

COLOURS = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow", "ERROR": "bold red", "SKIPPED": "dim"}


def show(house: House, found: Recipe, ended: Launched, *, as_json: bool) -> None:
    """Prints the summary of a run, from the artifacts that it left."""
    heads = {asset: house.store.fetch(ref) for asset, ref in house.catalog.heads(found.key).items()}
    if as_json:
        digests = {asset: artifact.ref.digest for asset, artifact in heads.items()}
        click.echo(
            json.dumps(
                {"run_id": ended.run_id, "passed": ended.passed, "check": ended.failed_check, "digests": digests},
                indent=2,
            )
        )
        return
    console.rule(f"{found.key}  run {ended.run_id[:8]}  {ended.seconds:.0f} s", align="left")
    _rows(heads["curated_dataset"])
    _windows(heads["packed_shards"])
    _loss(heads["checkpoints"])
    show_gates(heads["eval_report"])
    if ended.passed:
        _registered(house, found, heads)
    console.print(f"report page: {heads['eval_report'].file('report.html')}", soft_wrap=True)
    _next(found, passed=ended.passed)


def _read(artifact: Artifact, name: str) -> Any:
    return json.loads(artifact.file(name).read_text(encoding="utf-8"))


def _rows(curated: Artifact) -> None:
    statistics, counts = _read(curated, "statistics.json"), curated.manifest.counts
    console.print(
        f"[bold]rows[/bold]     {counts['rows_in']:,} in, {counts['rows_kept']:,} kept, {counts['rows_dropped']:,} dropped",
        end="",
    )
    console.print(
        "  ("
        + ", ".join(
            f"{reason} {n:,}" for reason, n in sorted(statistics["dropped_by_reason"].items(), key=lambda i: -i[1])
        )
        + ")"
    )
    console.print(
        "[bold]splits[/bold]   "
        + ", ".join(f"{split} {counts[split]:,}" for split in ("train", "validation", "holdout"))
    )


def _windows(shards: Artifact) -> None:
    statistics, counts = _read(shards, "statistics.json"), shards.manifest.counts
    console.print(
        f"[bold]windows[/bold]  {counts['windows']:,} of {statistics['window_tokens']} tokens, {statistics['fill']:.1%} full; "
        f"{counts['tokens']:,} tokens, {counts['trained_tokens']:,} of them trained"
    )


def _loss(checkpoints: Artifact) -> None:
    lines = checkpoints.file("losses.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    console.print(
        f"[bold]loss[/bold]     {losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}  in {len(losses):,} steps"
    )


def show_gates(report: Artifact) -> None:
    """One line per gate: verdict, both arms, the interval; below each the reason in words."""
    body = _read(report, "verdicts.json")
    console.print(f"[bold]gates[/bold]    {_coloured(body['verdict'])} under policy {body['policy']}")
    for gate in body["gates"]:
        interval = f"  [{gate['low']:+.3f}, {gate['high']:+.3f}]" if gate["low"] is not None else ""
        arms = f"base {_share(gate['base'])} -> adapter {_share(gate['adapter'])}{rich.markup.escape(interval)}  n={gate['rows']:,}"
        console.print(f"  {_coloured(gate['verdict']):<12} [bold]{gate['name']}[/bold]  {arms}", soft_wrap=True)
        console.print(f"               {gate['reason']}", style="dim", markup=False, soft_wrap=True)


def _coloured(verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _registered(house: House, found: Recipe, heads: dict[str, Artifact]) -> None:
    model = house.catalog.model(found.key)
    console.print(
        f"[bold]model[/bold]    {model.tenant}/{model.name}@{model.version}  stage {model.stage}  signed {heads['registered_model'].ref.digest[:12]}"
    )
    console.print(drawn(lineage.tree(house.store, heads["registered_model"].ref)))


def _next(found: Recipe, *, passed: bool) -> None:
    key = found.key
    tries = (
        [f"ft-pipeline chat {key}", f"ft-pipeline verify {key}", "make dev"]
        if passed
        else [f"ft-pipeline report {key}", f"ft-pipeline plan {key}", "make dev"]
    )
    console.print("[bold]next[/bold]     " + "\n         ".join(tries))
