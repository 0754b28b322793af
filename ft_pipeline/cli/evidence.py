"""`export-evidence`: everything that backs a version in one zip, for somebody without access to the system."""

from __future__ import annotations

from pathlib import Path

import click

from ft_pipeline import resources
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.register.graph import size


@click.command("export-evidence")
@click.argument("name", metavar="MODEL", type=MODEL)
@click.argument("out", metavar="OUT.zip", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--with-weights", is_flag=True, help="Include the bytes of the adapter and of its base model.")
@json_option
def export_evidence(name: str, out: Path, *, with_weights: bool, as_json: bool) -> None:
    """Write the evidence of MODEL (`tenant/name@N`) into OUT.zip: manifests, signatures, stages, gate reports, card, viewer.

    Unzip it anywhere and run `python -I verify.py` there: it needs only Python. index.html is for reading.
    """
    from ft_pipeline.register.bundle import export

    house = resources.open_house()
    version = house.catalog.model(name)
    made = export(
        version, out, store=house.store, catalog=house.catalog, settings=house.settings, with_weights=with_weights
    )
    row = {"model": version.label, "bundle": str(made.path), "files": made.files, "bytes": made.size}
    table([row | ({"not_included": list(made.not_included)} if as_json else {})], as_json=as_json)
    if not as_json:
        console.print(f"{size(made.size)}. Not included:", soft_wrap=True)
        for said in made.not_included:
            console.print(f"  {said}", markup=False, soft_wrap=True)
