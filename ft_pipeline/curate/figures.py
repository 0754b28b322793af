"""Pictures and tables of the curate door."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from ft_pipeline.curate.artifact import SPLITS, rows_of
from ft_pipeline.store.artifacts import Artifact

SAMPLE_CHARACTERS = 240
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


def reason_table(statistics: Mapping[str, Any]) -> str:
    """Markdown table: dropped and changed rows by reason."""
    rows = [(reason, "dropped", count) for reason, count in statistics["dropped_by_reason"].items()]
    rows += [(reason, "changed", count) for reason, count in statistics["changed_by_reason"].items()]
    return table(("reason", "action", "rows"), sorted(rows, key=lambda r: -r[2]))


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
