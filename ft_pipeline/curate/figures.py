"""Pictures and tables of the curate door."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ft_pipeline.curate.artifact import CONTAMINATION, EDGES, FLAGS, SPLITS, rows_of
from ft_pipeline.curate.comparison import written
from ft_pipeline.store.artifacts import Artifact

SAMPLE_CHARACTERS = 240
ANSWER_CHARACTERS = 120
BLUE, RED = "#3b6ea5", "#b5533c"


def drop_chart(reasons: Mapping[str, int]) -> str:
    """Markdown with an inline PNG: dropped rows by reason, the commonest on top."""
    if not reasons:
        return "No row was dropped."
    shown = sorted(reasons.items(), key=lambda item: (item[1], item[0]))[-10:]
    figure, axes = _axes("Dropped rows by reason", "rows")
    axes.barh([name for name, _ in shown], [count for _, count in shown], color=RED)
    for place, (_, count) in enumerate(shown):
        axes.annotate(f" {count:,}", (count, place), va="center", fontsize=8)
    axes.margins(x=0.12)
    return _markdown(figure, "Dropped rows by reason")


def length_chart(histogram: Sequence[Mapping[str, int]]) -> str:
    """Markdown with an inline PNG: kept rows by length."""
    figure, axes = _axes("Length of kept rows", "characters of prompt and response, up to")
    axes.bar([f"{b['up_to']:,}" for b in histogram], [b["rows"] for b in histogram], color=BLUE)
    axes.set_ylabel("rows", fontsize=8)
    return _markdown(figure, "Length of kept rows")


def cluster_chart(sizes: Mapping[str, int]) -> str:
    """Markdown with an inline PNG: clusters of variants by the number of their rows, those of one row left out."""
    ordered = sorted(sizes.items(), key=lambda item: int(item[0].split("-")[0].rstrip("+")))
    shown = {name: count for name, count in ordered if name != "1"}
    if not any(shown.values()):
        return "No two kept rows are variants of each other."
    figure, axes = _axes("Clusters of variants: rows that stay in one split together", "rows in the cluster")
    bars = axes.bar(list(shown), list(shown.values()), color=BLUE)
    axes.bar_label(bars, labels=[f"{count:,}" for count in shown.values()], fontsize=8)
    axes.set_ylabel("clusters", fontsize=8)
    axes.margins(y=0.15)
    return _markdown(figure, "Clusters of variants")


def reason_table(statistics: Mapping[str, Any]) -> str:
    """Markdown table: dropped and changed rows by reason."""
    rows = [(reason, "dropped", count) for reason, count in statistics["dropped_by_reason"].items()]
    rows += [(reason, "changed", count) for reason, count in statistics["changed_by_reason"].items()]
    return table(("reason", "action", "rows"), sorted(rows, key=lambda r: -r[2]))


def flag_table(curated: Artifact) -> str:
    """Markdown table of what the filters found; note means that the row stays as it is."""
    import polars as pl

    flags = pl.scan_parquet(curated.file(FLAGS)).group_by("filter", "reason", "action")
    found = flags.agg(rows=pl.col("row_id").n_unique(), findings=pl.len()).collect(engine="streaming")
    if not len(found):
        return "No filter found anything."
    names = ("filter", "reason", "action", "rows", "findings")
    return table(names, found.select(names).sort("rows", *names, descending=[True] + [False] * 5).rows())


def source_table(sources: Mapping[str, Mapping[str, int]]) -> str:
    """Markdown table of a mix: what each source gave, and its share of the train rows."""
    train = sum(counted["train"] for counted in sources.values()) or 1
    rows = [
        (name, c["rows_in"], c["kept"], c["not_drawn"], c["train"], f"{c['train'] / train:.1%}")
        for name, c in sources.items()
    ]
    return table(("source", "rows in", "kept", "not drawn", "train", "share"), rows)


def conflict_table(curated: Artifact, *, num_prompts: int = 3) -> str:
    """Markdown table of prompts that have several answers, cut short. Both are kept: which one is right no filter can know."""
    found = conflicts(curated, num_prompts=num_prompts)
    if not found:
        return "No prompt has two answers."
    rows = [(one.prompt[:SAMPLE_CHARACTERS], *(f"{a[:ANSWER_CHARACTERS]}" for a in one.answers)) for one in found]
    return table(("prompt", "one answer", "another"), rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Two kept rows with the same prompt."""

    prompt: str
    row_ids: tuple[str, str]
    answers: tuple[str, str]


def conflicts(curated: Artifact, *, num_prompts: int) -> list[Conflict]:
    """The first pairs of rows that answer the same prompt differently, each prompt once."""
    import polars as pl

    edges = pl.scan_parquet(curated.file(EDGES)).filter(pl.col("relation") == "conflict").select("kept_id", "other_id")
    pairs = edges.unique("kept_id", keep="first", maintain_order=True).head(num_prompts).collect().rows()
    said = _said(curated, {row_id for pair in pairs for row_id in pair})
    whole = [(pair, said[pair[0]], said[pair[1]]) for pair in pairs if pair[0] in said and pair[1] in said]
    return [Conflict(prompt=one[0], row_ids=ids, answers=(one[1], other[1])) for ids, one, other in whole]


def item_table(curated: Artifact, *, num_items: int = 10) -> str:
    """Markdown table of benchmark items that stand in rows, those that would be trained on first."""
    import polars as pl

    if CONTAMINATION not in curated.manifest.files:
        return "The recipe names no benchmark (curate.contamination.benchmarks)."
    items = pl.read_parquet(curated.file(CONTAMINATION))
    if not len(items):
        return "No row holds an item of a benchmark. Lexical only: a paraphrase is not found."
    first = items.sort("rows_trained", "rows", "bench_cov", descending=True).head(num_items)
    rows = [
        (r["benchmark"], r["item_id"] or "(shared text)", r["rows"], r["rows_trained"], f"{r['bench_cov']:.0%}", r["text"][:ANSWER_CHARACTERS])
        for r in first.to_dicts()
    ]  # fmt: skip
    shown = table(("benchmark", "item", "rows", "of them trained on", "of the item", "stands there"), rows)
    return f"{len(items):,} items of {items['benchmark'].n_unique()} benchmarks; the first {len(rows)}:\n\n{shown}"


def count_table(counts: Mapping[str, int], name: str) -> str:
    """Markdown table of counts."""
    return table((name, "rows"), list(counts.items()))


def sample_table(curated: Artifact, *, num_rows: int = 3) -> str:
    """Markdown table of the first rows of the train split, cut short."""
    rows = [
        (row["row_id"], row["origin"], json.dumps(row["content"], ensure_ascii=False)[:SAMPLE_CHARACTERS])
        for row in islice(rows_of(curated, SPLITS[0]), num_rows)
    ]
    return table(("row_id", "origin", "content"), rows)


def _said(curated: Artifact, ids: set[str]) -> dict[str, tuple[str, str]]:
    """Prompt and response of kept rows by id."""
    import polars as pl

    found: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        rows = pl.scan_parquet(curated.file(f"{split}.parquet")).filter(pl.col("row_id").is_in(list(ids)))
        told = rows.select("row_id", "shape", "content").collect(engine="streaming").iter_rows()
        found |= {row_id: written(shape, json.loads(content)) for row_id, shape, content in told}
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown table."""
    lines = [[_cell(cell) for cell in row] for row in rows] or [["-"] * len(head)]
    return "\n".join("|" + "|".join(line) + "|" for line in (list(head), ["---"] * len(head), *lines))


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _axes(title: str, xlabel: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _markdown(figure: Any, title: str) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return f"![{title}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})"
