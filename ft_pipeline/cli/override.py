"""`override`: a person overrules gates of a report, with a reason that is signed and kept."""

from __future__ import annotations

import click

from ft_pipeline import resources
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.show import json_option, table
from ft_pipeline.errors import NotFoundError, did_you_mean
from ft_pipeline.resources import House


@click.command()
@click.argument("target", metavar="MODEL_LINE_OR_REPORT", type=MODEL)
@click.option("--gate", "gates", multiple=True, required=True, help="A gate that stands in the way; may be repeated.")
@click.option("--reason", required=True, help="Why. Signed, and shown in the model card and the history.")
@json_option
def override(target: str, gates: tuple[str, ...], reason: str, *, as_json: bool) -> None:
    """Overrule gates of the newest report of MODEL_LINE (`tenant/name`, or the report's digest).

    Who, why and when is signed and chained. When no gate is left in the way the version is registered, in staging at most;
    production takes a second person. Safety is refused (exit 3) unless the policy allows it.
    """
    from ft_pipeline.register.evidence import in_the_way, read_evidence
    from ft_pipeline.register.override import overrule
    from ft_pipeline.register.registration import Candidate, register

    house = resources.open_house()
    line = _line_of(house, target)
    report = house.catalog.head(line, "eval_report")
    made = overrule(
        report, gates, line=line, reason=reason, store=house.store, catalog=house.catalog, settings=house.settings
    )
    left = [str(g["name"]) for g in in_the_way(read_evidence(house.store, report)) if g["name"] not in made.gates]
    row = {
        "override": made.ref.digest[:12],
        "report": report.digest[:12],
        "gates": ", ".join(made.gates),
        "by": made.actor,
    }
    if left:
        table([row | {"still open": ", ".join(left)}], as_json=as_json)
        return
    adapter, base = (house.catalog.head(line, asset) for asset in ("adapter", "base_model"))
    candidate = Candidate(recipe=house.recipe(line), report=report, run_id=made.principal, adapter=adapter, base=base)
    outcome = register(candidate, store=house.store, catalog=house.catalog, settings=house.settings)
    house.catalog.set_head(line, "registered_model", outcome.artifact)
    table([row | {"model": outcome.model.label, "stage": outcome.model.stage}], as_json=as_json)


def _line_of(house: House, target: str) -> str:
    """The model line that is meant, by its name or by the digest of its newest report. Raises NotFoundError."""
    keys = house.catalog.recipe_keys()
    reports = {
        house.catalog.heads(key)["eval_report"].digest: key for key in keys if "eval_report" in house.catalog.heads(key)
    }
    if target in reports.values():
        return target
    found = [key for digest, key in reports.items() if len(target) >= 6 and digest.startswith(target)]
    if len(found) != 1:
        raise NotFoundError(
            f"{target} is neither a model line with a report nor the digest of a line's newest report: {did_you_mean(target, reports.values())}",
            cure="`ft-pipeline report MODEL_LINE` shows it",
        )
    return found[0]
