"""`models`, `promote`, `approve`, `approvals`, `rollback`, `history`, `report`: what is registered, in which stage, on which evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from ft_pipeline import resources
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.errors import NotFoundError, did_you_mean
from ft_pipeline.store.catalog import Catalog, Transition

if TYPE_CHECKING:
    from ft_pipeline.register.approval import Request


@click.command()
@click.option("--tenant", help="Only this tenant's models.")
@json_option
def models(tenant: str | None, *, as_json: bool) -> None:
    """List the registered versions: stage, digests, date."""
    rows = [
        {"model": f"{m.tenant}/{m.name}@{m.version}", "stage": m.stage, "adapter": m.adapter_digest[:12], "base": m.base_digest[:12],
         "dataset": m.dataset_digest[:12], "report": m.report_digest[:12], "created_at": m.created_at if as_json else minute(m.created_at)}
        for m in resources.open_house().catalog.models(tenant)
    ]  # fmt: skip
    table(rows, as_json=as_json, empty="no model is registered yet: `ft-pipeline run RECIPE`")


@click.command()
@click.argument("name", metavar="MODEL", type=MODEL)
@click.option(
    "--to", "to_stage", type=click.Choice(["dev", "staging", "production", "archived"]), help="Default: the next stage."
)
@click.option("--reason", default="promoted by hand", show_default=True, help="Goes into the append-only history.")
@json_option
def promote(name: str, *, to_stage: str | None, reason: str, as_json: bool) -> None:
    """Move MODEL (`tenant/name@N`) to the next stage. Refused (exit 3) without a passing report on the present base model.

    Where the policy leaves production to people this only asks, signed: somebody else approves with `ft-pipeline approve`.
    """
    from ft_pipeline.register import acts

    made = acts.promote(name, to_stage, reason=reason, **_office())
    if isinstance(made, Transition):
        table(moves([made], whole=as_json), as_json=as_json)
        return
    table([waiting(made, whole=as_json)], as_json=as_json)
    if not as_json:
        console.print(f"waits for a second person: `ft-pipeline approve {made.model}`", soft_wrap=True)


@click.command()
@click.argument("name", metavar="MODEL", type=MODEL)
@click.option("--reason", default="", help="Goes into the append-only history, beside the reason of who asked.")
@json_option
def approve(name: str, *, reason: str, as_json: bool) -> None:
    """Bring MODEL to production as the second person. Refused (exit 3) for who asked, and when anything changed since."""
    from ft_pipeline.register import acts

    table(moves([acts.approve(name, reason=reason, **_office())], whole=as_json), as_json=as_json)


@click.command()
@click.option("--tenant", help="Only this tenant's models.")
@json_option
def approvals(tenant: str | None, *, as_json: bool) -> None:
    """List what waits for a second person: who asked, when, why; and what is stale."""
    from ft_pipeline.register.approval import pending

    house = resources.open_house()
    found = pending(house.catalog, store=house.store, settings=house.settings, tenant=tenant)
    table([waiting(r, whole=as_json) for r in found], as_json=as_json, empty="nothing waits for a second person")


def waiting(asked: Request, *, whole: bool) -> dict[str, Any]:
    """A request as a row: every digit for JSON, what a person reads for a terminal."""
    return {
        "model": asked.model,
        "asked_by": asked.actor,
        "at": asked.at if whole else minute(asked.at),
        "reason": asked.reason,
        "replaces": asked.replaces,
        "report": asked.report_digest if whole else asked.report_digest[:12],
        "stale": asked.stale,
        "request": asked.ref.digest if whole else asked.ref.digest[:12],
    }


def _office() -> dict[str, Any]:
    """What an act needs: who acts, and where."""
    house = resources.open_house()
    return {
        "actor": house.settings.actor,
        "catalog": house.catalog,
        "store": house.store,
        "settings": house.settings,
    }


@click.command()
@click.argument("name", metavar="MODEL", type=MODEL)
@click.option("--reason", default="rolled back by hand", show_default=True, help="Goes into the append-only history.")
@json_option
def rollback(name: str, reason: str, *, as_json: bool) -> None:
    """Bring the previous production version of a model line back. A running server follows within a second."""
    from ft_pipeline.register import acts

    table(moves([acts.rollback(name, reason=reason, **_office())], whole=as_json), as_json=as_json)


@click.command()
@click.argument("name", metavar="MODEL", type=MODEL)
@json_option
def history(name: str, *, as_json: bool) -> None:
    """Every stage transition of a model line: who, when, why, on which evidence; hash-chained."""
    catalog = resources.open_house().catalog
    found = catalog.history(name) or catalog.history(catalog.model(name).line)
    rows = [*moves(found, whole=as_json), *takedowns_of(catalog, {t.model for t in found}, whole=as_json)]
    rows.sort(key=lambda row: str(row.get("created_at", row.get("at"))))
    if as_json:
        table(rows, as_json=True)
        return
    for row in rows:
        console.print(told(row), soft_wrap=True, highlight=False)


def told(row: dict[str, Any]) -> str:
    """One event of the history in two lines, for a terminal of any width."""
    who = row["by"] + (f", approved by {row['approved_by']}" if row["approved_by"] else "")
    seal = f"  [dim]{row['seal']}[/]" if row["seal"] else ""
    return f"{row['at']}  [bold]{escape(row['model'])}[/]  {escape(row['moved'])}{seal}\n    {escape(who)}: {escape(row['reason'])}"


def takedowns_of(catalog: Catalog, labels: set[str], *, whole: bool) -> list[dict[str, Any]]:
    """Rows of data that these versions were made from and that were taken down, as rows of the history."""
    found: list[dict[str, Any]] = []
    for t in catalog.takedowns():
        for model in (v.label for v in t.models if v.label in labels):
            moved = f"row {t.row_key}: takedown {t.event}"
            if whole:
                found.append(
                    {
                        "model": model,
                        "takedown": t.event,
                        "row": t.row_key,
                        "actor": t.actor,
                        "reason": t.reason,
                        "created_at": t.created_at,
                    }
                )
            else:
                found.append(
                    {
                        "at": minute(t.created_at),
                        "model": model,
                        "moved": moved,
                        "by": t.actor,
                        "approved_by": None,
                        "reason": t.reason,
                        "seal": "",
                    }
                )
    return found


def moves(found: Sequence[Transition], *, whole: bool) -> list[dict[str, Any]]:
    """Transitions as rows: every field for JSON, what a person reads for a terminal."""
    if whole:
        return [asdict(t) for t in found]
    return [
        {
            "at": minute(t.created_at),
            "model": t.model,
            "moved": f"{t.from_stage} > {t.to_stage}",
            "by": t.actor,
            "approved_by": t.approved_by,
            "reason": t.reason,
            "seal": t.sha256[:8],
        }
        for t in found
    ]


def minute(moment: str) -> str:
    """`2026-11-25 22:00` of an ISO time."""
    return moment[:16].replace("T", " ")


@click.command()
@click.argument("key", metavar="MODEL_LINE", type=MODEL)
@json_option
def report(key: str, *, as_json: bool) -> None:
    """Show the newest gate report of a model line, and where its HTML page is."""
    from ft_pipeline.cli.summary import show_gates

    house = resources.open_house()
    known = house.catalog.recipe_keys()
    if key not in known:
        raise NotFoundError(
            f"{key} has no report: {did_you_mean(key, known)}", cure="`ft-pipeline run RECIPE` makes one"
        )
    artifact = house.store.fetch(house.catalog.head(key, "eval_report"))
    if as_json:
        click.echo(json.dumps(json.loads(artifact.file("verdicts.json").read_text(encoding="utf-8")), indent=2))
        return
    console.print(f"[bold]{key}[/bold]  report {artifact.ref.digest[:12]}")
    show_gates(artifact)
    console.print(f"page: {artifact.file('report.html')}", soft_wrap=True)
