"""`forget`: rows are taken down: what is affected, the plan, and the record of its completion."""

from __future__ import annotations

from pathlib import Path

import click

from ft_pipeline import resources
from ft_pipeline.cli.models import minute
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.errors import UserError


@click.command()
@click.argument("rows", metavar="[ROW...]", nargs=-1)
@click.option("--reason", default="", help="Why. Signed, and shown in the history.")
@click.option("--complete", "completed", is_flag=True, help="Record that nothing deployed was made from the rows.")
@click.option("--dry-run", is_flag=True, help="Only say what is affected; nothing is recorded.")
@click.option("--plan", "plan_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the plan here.")
@json_option
def forget(
    rows: tuple[str, ...], *, reason: str, completed: bool, dry_run: bool, plan_file: Path | None, as_json: bool
) -> None:
    """Take ROWs down (row ids as in `trace`): list every dataset, adapter, version and deployment that they are in, and what to do.

    From then on curate drops these rows wherever they come from. `--complete` (exit 3 while an affected version is deployed)
    closes the takedown; the versions can then neither be deployed nor brought back. Without ROW: every takedown so far.
    """
    from ft_pipeline.register import takedown

    house = resources.open_house()
    if not rows:
        _list(house, as_json=as_json)
        return
    if completed and dry_run:
        raise UserError("--complete and --dry-run together say nothing", cure="leave one out")
    found = takedown.affected_by(rows, store=house.store, catalog=house.catalog)
    if completed:
        takedown.complete(found, reason=reason, catalog=house.catalog, settings=house.settings)
    elif not dry_run:
        takedown.request(found, reason=reason, catalog=house.catalog, settings=house.settings)
    steps = takedown.plan(found)
    if plan_file:
        plan_file.write_text("\n".join([f"# Takedown of {', '.join(found.rows)}", "", *steps, ""]), encoding="utf-8")
    serving = {v.id: [pool for pool, other in found.deployments if other.id == v.id] for v in found.versions}
    shown = [
        *({"affected": "dataset", "what": f"{ref.digest[:12]} ({split})", "served": ""} for ref, split in found.datasets),
        *({"affected": "adapter", "what": ref.digest[:12], "served": ""} for ref in found.adapters),
        *({"affected": "version", "what": f"{v.label} ({v.stage})", "served": ", ".join(serving[v.id])} for v in found.versions),
    ]  # fmt: skip
    table(
        shown, as_json=as_json, title=", ".join(found.rows), empty="nothing was made from it: it was dropped everywhere"
    )
    if as_json:
        return
    if completed:
        console.print("[green]complete[/green]: no affected version is deployed, and none can be again", soft_wrap=True)
        return
    for step in steps:
        console.print(step, markup=False, soft_wrap=True)


def _list(house: resources.House, *, as_json: bool) -> None:
    rows = [
        {
            "at": minute(t.created_at), "row": t.row_key, "event": t.event, "by": t.actor, "reason": t.reason,
            "versions": ", ".join(v.label for v in t.models),
        }
        for t in house.catalog.takedowns()
    ]  # fmt: skip
    table(rows, as_json=as_json, empty="no row was taken down")
