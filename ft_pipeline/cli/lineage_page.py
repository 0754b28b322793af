"""`lineage`: the ancestors of a model as one HTML page with a graph."""

from __future__ import annotations

from pathlib import Path

import click

from ft_pipeline import resources
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.show import console
from ft_pipeline.cli.trace import ref_of


@click.command()
@click.argument("name", metavar="MODEL|DIGEST", type=MODEL)
@click.option(
    "--html", "out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where the page is written."
)
def lineage(name: str, out: Path) -> None:
    """Draw everything that MODEL was made of: a page with a graph, each box with digest, size, date and code version."""
    from ft_pipeline.register.chain import manifests_of
    from ft_pipeline.register.viewer import lineage_page

    house = resources.open_house()
    ref = ref_of(house, name)
    manifests = manifests_of(house.store, ref)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(lineage_page(name, manifests, ref.digest), encoding="utf-8")
    console.print(f"{len(manifests)} artifacts: {out}", markup=False, soft_wrap=True)
