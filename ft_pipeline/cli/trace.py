"""`trace` and `verify`: from a model to the raw bytes, and from a row to every adapter that saw it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import click
from rich.tree import Tree

from ft_pipeline import lineage, resources
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.show import console, json_option, progress_bars, table
from ft_pipeline.errors import IntegrityError, NotFoundError
from ft_pipeline.register.artifact import KIND, verify_seals
from ft_pipeline.resources import House
from ft_pipeline.store.manifest import Ref
from ft_pipeline.workers.messages import ignore


@click.command()
@click.argument("name", metavar="MODEL|ROW_ID|DIGEST")
@json_option
def trace(name: str, *, as_json: bool) -> None:
    """Print the lineage of a model (`tenant/name`, `tenant/name@N`, a digest) down to the raw bytes; or of a row up to every adapter that saw it."""
    house = resources.open_house()
    if is_row_id(name):
        _trace_row(house, name, as_json=as_json)
        return
    node = lineage.tree(house.store, ref_of(house, name))
    if as_json:
        click.echo(json.dumps(asdict(node), indent=2))
    else:
        console.print(drawn(node))


@click.command()
@click.argument("name", metavar="MODEL|DIGEST", type=MODEL)
@json_option
def verify(name: str, *, as_json: bool) -> None:
    """Re-hash everything from MODEL to the raw bytes and check its signature. Exit 4 and the name of the first broken file otherwise."""
    with nullcontext(ignore) if as_json else progress_bars() as listener:
        found = audit(resources.open_house(listener=listener), name)
    rows = [
        {"artifact": c.ref.kind, "digest": c.ref.digest[:12], "files": c.files, "bytes": c.size} for c in found.checked
    ]
    table(rows, as_json=as_json, title=f"{name}: every byte is what its manifest says")
    if not as_json:
        whole = f"{sum(c.files for c in found.checked)} files in {len(found.checked)} artifacts verified"
        signed = f"; signature by {found.signed_by[:12]}" if found.signed_by else ""
        history = f"; {found.moves} stage transitions, their chain of hashes whole"
        catalog = f"; {found.lines} lines of the catalog's journal under {found.seals} seals"
        console.print(f"[green]{whole}[/green]{signed}{history}{catalog}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was found whole."""

    checked: list[lineage.Checked]
    moves: int
    lines: int
    seals: int
    signed_by: str
    """Id of the key of a registered model, empty for any other artifact."""


def audit(house: House, name: str) -> Audit:
    """Everything that a model or artifact stands on: the catalog's rows, journal, seals and history, every byte, the signature.

    Raises IntegrityError naming the first thing that is not as it was written.
    """
    from ft_pipeline.register import approval, attest

    lines = house.catalog.verify_rows()
    seals = verify_seals(house.catalog, house.settings)
    moves = house.catalog.verify_history()
    ref = ref_of(house, name)
    checked = lineage.verify(house.store, ref, listener=house.listener)
    house.catalog.verify_index(house.store.recorded(c.ref) for c in checked)
    signed = ref.kind == "registered_model"
    signed_by = attest.verify_registered(house.store, ref, settings=house.settings) if signed else ""
    if signed:
        model = house.catalog.model(str(house.store.recorded(ref).config["model"]))
        approval.verify_requests(model, store=house.store, catalog=house.catalog, settings=house.settings)
    return Audit(checked=checked, moves=moves, lines=lines, seals=seals, signed_by=signed_by)


def is_row_id(name: str) -> bool:
    """True for `r` and hex digits: no model line looks so."""
    body = name.removeprefix("r").partition("-")[0]
    return name.startswith("r") and len(body) >= 6 and all(c in "0123456789abcdef" for c in body)


def ref_of(house: House, name: str) -> Ref:
    """The artifact of a model name, a recipe's asset `tenant/name#asset`, or a digest (prefix)."""
    line, _, asset = name.partition("#")
    if asset:
        return house.catalog.head(line, asset)
    if "/" not in name:
        return house.catalog.ref(name)
    model = house.catalog.model(name)
    if not model.registered_digest:
        raise NotFoundError(
            f"{name} was never attested", cure=f"run its recipe again, or trace {name.partition('@')[0]}#adapter"
        )
    try:
        found = house.catalog.ref(model.registered_digest)
        if found.kind == KIND and house.store.recorded(found):
            return found
        said = f"says {found.kind}"
    except NotFoundError as error:
        said = f"leads nowhere: {error.what}"
    raise IntegrityError(
        f"catalog table artifacts {said}, for {model.registered_digest[:12]}, which {model.label} is attested as",
        why="The index was changed, it is of another store, or the artifact was deleted.",
        cure="`ft-pipeline catalog rebuild` indexes the store again",
    )


def drawn(node: lineage.Node, *, role: str = "") -> Tree:
    """The lineage as a tree for the terminal; a shared ancestor is drawn once and named afterwards."""
    return _branch(node, role, set())


def _branch(node: lineage.Node, role: str, seen: set[str]) -> Tree:
    label = f"[bold]{node.kind}[/bold] {node.digest[:12]}" + (
        f" [dim]as {role}[/dim]" if role and role != node.kind else ""
    )
    if node.digest in seen:
        return Tree(f"{label} [dim](above)[/dim]")
    seen.add(node.digest)
    counts = "  ".join(f"{k} {v:,}" for k, v in list(node.counts.items())[:4])
    tree = Tree(f"{label}  [dim]{counts}[/dim]")
    for parent_role, parent in node.parents.items():
        tree.add(_branch(parent, parent_role, seen))
    return tree


def _trace_row(house: House, row_id: str, *, as_json: bool) -> None:
    found = lineage.adapters_that_saw(house.store, house.catalog, row_id)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, default=str))
        return
    console.print(lineage.told(found), markup=False, soft_wrap=True)
