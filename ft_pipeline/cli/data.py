"""`datasets` and `diff`: the curated datasets of this store, and what is other in one than in another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from ft_pipeline import resources
from ft_pipeline.cli.completion import MODEL
from ft_pipeline.cli.models import minute
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.curate.artifact import SPLITS
from ft_pipeline.errors import NotFoundError, UserError, did_you_mean
from ft_pipeline.resources import House
from ft_pipeline.store.manifest import Manifest, Ref

ASSET = "curated_dataset"
MIN_DIGITS = 4
STYLES = {"removed": "red", "added": "green", "changed": "yellow", "moved": "cyan"}


@click.command()
@json_option
def datasets(*, as_json: bool) -> None:
    """List the curated datasets of this store, the newest first: digest, rows, what they were made for."""
    house = resources.open_house()
    uses = _uses(house)
    found = sorted(house.store.all(ASSET), key=lambda m: (m.created_at, m.digest), reverse=True)
    rows = [_listed(m, uses.get(m.digest, []), whole=as_json) for m in found]
    table(rows, as_json=as_json, empty="no dataset is curated yet: `ft-pipeline run RECIPE`")


@click.command()
@click.argument("before", metavar="A", type=MODEL)
@click.argument("after", metavar="B", type=MODEL)
@click.option("--rows", "num_rows", default=3, show_default=True, type=click.IntRange(min=0), help="Rows shown of each change.")  # fmt: skip
@json_option
def diff(before: str, after: str, num_rows: int, *, as_json: bool) -> None:
    """Say what is other in curated dataset B than in A: rows removed, added, changed, moved to another split, each with its reason.

    A and B are digests (`ft-pipeline datasets`), `tenant/recipe` for its newest one, or `tenant/name@N` for what a version was
    trained on.
    """
    from ft_pipeline.curate import difference, difference_rows

    house = resources.open_house()
    pair = [house.store.fetch(dataset_of(house, name)) for name in (before, after)]
    found = difference.difference(*pair)
    shown = difference_rows.examples(found, *pair, num_rows=num_rows)
    if as_json:
        click.echo(json.dumps(_told(found, shown), indent=2))
        return
    _print(found, (pair[0].manifest, pair[1].manifest), shown)


def dataset_of(house: House, name: str) -> Ref:
    """The curated dataset that a name means: a digest (prefix), a recipe's newest one, or the one a model version was trained on.

    Raises NotFoundError with the nearest names, UserError for a prefix that fits several.
    """
    if "@" in name or ":" in name:
        return house.catalog.ref(house.catalog.model(name).dataset_digest)
    if "/" in name:
        return _newest(house, name)
    known = {m.digest: m.ref for m in house.store.all(ASSET)}
    fitting = [digest for digest in known if digest.startswith(name.lower())] if len(name) >= MIN_DIGITS else []
    if len(fitting) > 1:
        raise UserError(f"{name} fits {len(fitting)} datasets: {', '.join(d[:16] for d in fitting)}", cure="give more digits")  # fmt: skip
    if fitting:
        return known[fitting[0]]
    raise NotFoundError(
        f"no curated dataset {name!r}" + _near(name, [d[:12] for d in known]),
        cure="`ft-pipeline datasets` lists them; a name is `tenant/recipe` or `tenant/name@N`",
    )


def _listed(manifest: Manifest, uses: Sequence[str], *, whole: bool) -> dict[str, Any]:
    raw = manifest.parents["raw"].digest if "raw" in manifest.parents else ""
    splits = {split: manifest.counts.get(split, 0) for split in SPLITS}
    return {
        "dataset": manifest.digest if whole else manifest.digest[:12],
        "made_at": manifest.created_at if whole else minute(manifest.created_at),
        "used_by": list(uses) if whole else ", ".join(uses),
        "raw": raw if whole else raw[:12],
        "rows_in": manifest.counts.get("rows_in", 0),
        "rows_kept": manifest.counts.get("rows_kept", 0),
        **(splits if whole else {"splits": " / ".join(f"{n:,}" for n in splits.values())}),
    }


def _newest(house: House, key: str) -> Ref:
    heads = house.catalog.heads(key)
    if ASSET in heads:
        return heads[ASSET]
    known = [k for k in house.catalog.recipe_keys() if ASSET in house.catalog.heads(k)]
    raise NotFoundError(
        f"{key} has no curated dataset" + _near(key, known),
        cure="`ft-pipeline datasets` lists them; `ft-pipeline run RECIPE` makes one",
    )


def _near(name: str, known: Sequence[str]) -> str:
    return f": {did_you_mean(name, known)}" if known else ""


def _uses(house: House) -> dict[str, list[str]]:
    """Digest of a dataset -> recipes whose newest it is, and versions that were trained on it."""
    uses: dict[str, list[str]] = {}
    for key in house.catalog.recipe_keys():
        if ref := house.catalog.heads(key).get(ASSET):
            uses.setdefault(ref.digest, []).append(key)
    for model in house.catalog.models():
        uses.setdefault(model.dataset_digest, []).append(model.label)
    return uses


def _told(found: Any, shown: Sequence[Any]) -> dict[str, Any]:
    return {
        "before": asdict(found.before),
        "after": asdict(found.after),
        "inputs": [asdict(one) for one in found.inputs],
        "unchanged": found.unchanged,
        "counts": found.counts,
        "reasons": [asdict(one) for one in found.reasons],
        "rows": [asdict(one) for one in shown],
    }


def _print(found: Any, manifests: tuple[Manifest, Manifest], shown: Sequence[Any]) -> None:
    for name, manifest in zip("AB", manifests, strict=True):
        rows_in, kept = manifest.counts["rows_in"], manifest.counts["rows_kept"]
        console.print(f"[bold]{name}[/bold]  {manifest.digest[:12]}  {kept:,} of {rows_in:,} raw rows kept")
    if found.inputs:
        console.print()
        table([asdict(one) for one in found.inputs], as_json=False, title="Made of")
    console.print()
    counted = "   ".join(f"[{STYLES[c]}]{n:,} {c}[/{STYLES[c]}]" for c, n in found.counts.items())
    console.print(f"{found.unchanged:,} unchanged   {counted}")
    if found.reasons:
        console.print()
        table([_reason(one) for one in found.reasons], as_json=False)
    for one in shown:
        for line in _lines(one):
            console.print(line, soft_wrap=True)


def _reason(one: Any) -> dict[str, Any]:
    from ft_pipeline.curate.difference import EXPLAINED

    meaning = EXPLAINED.get(one.reason)
    if meaning is None:
        meaning = {"removed": "B drops it", "added": "A dropped it", "changed": "its text is altered"}[one.change]
    return {"change": one.change, "reason": one.reason, "rows": one.rows, "meaning": meaning}


def _lines(one: Any) -> Iterator[Text]:
    where = one.split if one.new_split in (None, one.split) else f"{one.split} > {one.new_split}"
    yield Text("")
    yield Text.assemble((f"{one.change} {one.row_id}", STYLES[one.change]), f"  {one.origin}  {where}  ", (one.reason, "bold"))  # fmt: skip
    yield Text(f"  {_one_line(one.text)}", style="dim")
    if one.new_text is not None:
        yield Text(f"  now: {_one_line(one.new_text)}", style="dim")
    if one.stands_for:
        yield Text(f"  kept instead: {one.stands_for} {_likeness(one)}{_one_line(one.stands_for_text or '')}")
    elif one.evidence:
        yield Text("  " + _one_line("  ".join(f"{k} {v}" for k, v in one.evidence.items())))


def _likeness(one: Any) -> str:
    """How alike the pair is that ties the row to the one that is kept: often that one itself, else a row between them."""
    edge = one.evidence.get("edge", {})
    told = [f"{side} {edge[f'{side}_j']:.2f}" for side in ("prompt", "response") if edge.get(f"{side}_j") is not None]
    ends = {edge.get("kept_id"), edge.get("other_id")} - {one.row_id}
    between = "" if one.stands_for in ends else f" to {', '.join(sorted(filter(None, ends)))}"
    return f"({', '.join(told)} alike{between}) " if told else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
