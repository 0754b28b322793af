"""Where an estimate gets its numbers before anything is in the store: a config.json, a public shape, the raw rows on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.errors import UserError
from ft_pipeline.planning.cost import Market
from ft_pipeline.planning.prices import Prices
from ft_pipeline.planning.shapes import Shape, public_shape, shape_of
from ft_pipeline.planning.work import Work, estimated
from ft_pipeline.recipe import Recipe
from ft_pipeline.settings import Settings
from ft_pipeline.store.blobs import digest_of, is_blob, local_blob
from ft_pipeline.store.paths import resolve

SAMPLE_BYTES = 4 << 20
"""Read of each file to learn the mean length of a row."""
ASSUMED_ROWS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a person says about a plan: none of it is in the recipe."""

    gpu: str | None = None
    gpus: int | None = None
    rows: int | None = None
    row_tokens: int | None = None
    within_hours: float | None = None
    market: Market = "spot"
    mfu: float | None = None


def shape_at(uri: str, where: Settings) -> tuple[str, Shape] | None:
    """(where it is from, shape) of a base model that is a local folder, a config.json or a public name; None when it is not known."""
    place = resolve(uri, where.home)
    path = Path(place) if "://" not in place else None
    config = path / "config.json" if path and path.is_dir() else path
    if config and config.is_file():
        found = shape_in(config)
        return (str(config), found) if found else None
    return public_shape(uri)


def shape_in(config: Path) -> Shape | None:
    """The shape in a config.json, None when it is of another form. Raises UserError when it is no JSON."""
    try:
        body = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is no config.json of a model: {error}") from None
    try:
        return shape_of(body)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def work_at(found: Recipe, where: Settings, *, prices: Prices, wish: Wish) -> Work:
    """The work of a recipe whose rows are not curated yet: as said, as the raw files let expect, or assumed."""
    assumed = prices.assumed
    seen = _raw(found, where)
    rows = wish.rows or (seen[0] if seen else ASSUMED_ROWS)
    tokens = wish.row_tokens or (seen[1] / assumed.bytes_per_token if seen else assumed.tokens_per_row)
    told = (
        "as you say" if wish.rows else "counted in the raw files" if seen else "assumed: say --rows",
        "as you say" if wish.row_tokens else f"from their bytes at {assumed.bytes_per_token} a token" if seen else "assumed: say --row-tokens",
    )  # fmt: skip
    known_from = f"{rows:,} rows ({told[0]}) of {tokens:,.0f} tokens ({told[1]}), before curation drops any"
    return estimated(found, rows=rows, row_tokens=tokens, fill=assumed.fill, known_from=known_from)


def _raw(found: Recipe, where: Settings) -> tuple[int, float] | None:
    """(rows, mean bytes of a row) of the recipe's local JSONL files; None when there are none."""
    counted = [c for uri in (found.dataset.uri, *(s.uri for s in found.mix)) if (c := _counted(_files(uri, where)))]
    rows = sum(count for count, _ in counted)
    return (rows, sum(count * mean for count, mean in counted) / rows) if rows else None


def _files(uri: str, where: Settings) -> list[Path]:
    place = resolve(uri, where.home)
    if is_blob(uri) and (uploaded := local_blob(resolve(where.store_uri, where.home), digest_of(uri))):
        return [uploaded]
    if "://" in place:
        return []
    path = Path(place)
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _counted(files: Iterable[Path]) -> tuple[int, float] | None:
    """Rows of uncompressed JSONL: of a large file estimated from its first 4 MiB."""
    rows, size = 0.0, 0
    for path in files:
        if path.suffix not in (".jsonl", ".ndjson", ""):
            continue
        with path.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
        if not path.suffix and not head.lstrip().startswith(b"{"):
            continue
        whole = path.stat().st_size
        rows += head.count(b"\n") * (whole / len(head)) if head else 0
        size += whole
    return (round(rows), size / rows) if rows >= 1 else None
