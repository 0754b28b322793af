"""Pictures and tables of packed shards for a metadata page: the length histogram, one window with its trained tokens in bold."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

PREVIEW_ROWS = 6


def length_histogram(histogram: Mapping[str, Sequence[int]], *, window_tokens: int) -> str:
    """Markdown image: rows by length in tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    edges = histogram["edges"]
    widths = [b - a for a, b in pairwise(edges)]
    axes.bar(
        edges[:-1], histogram["rows"], width=widths, align="edge", color="#3b6ea5", edgecolor="white", linewidth=0.5
    )
    axes.set(title=f"Rows by length (window {window_tokens} tokens)", xlabel="tokens", ylabel="rows")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"![rows by length](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def window_text(window: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of one decoded window: a paragraph a row, trained text in bold, the rest in code."""
    parts = []
    for row in window[:PREVIEW_ROWS]:
        pieces = "".join(_trained(text) if trained else _context(text) for text, trained in row["pieces"])
        parts.append(f"`{row['row_id']}`: {pieces}")
    if rest := len(window) - PREVIEW_ROWS:
        parts += [f"and {rest} rows more"] if rest > 0 else []
    return "Bold text is trained, the rest is context only.\n\n" + "\n\n".join(parts)


def split_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table: rows, windows, tokens, trained tokens and fill of each split."""
    lines = ["| split | rows | windows | tokens | trained | full |", "|---|---|---|---|---|---|"]
    for name, s in splits.items():
        lines.append(
            f"| {name} | {s['rows']:,} | {s['windows']:,} | {s['tokens']:,} | {s['trained_tokens']:,} | {s['fill']:.1%} |"
        )
    return "\n".join(lines)


def _trained(text: str) -> str:
    shown = text.strip()
    for mark in "\\*_`<>[]|":
        shown = shown.replace(mark, f"\\{mark}")
    return f" **{shown.replace(chr(10), ' ')}** " if shown else " "


def _context(text: str) -> str:
    shown = text.replace("`", "'").replace("\n", " ").strip()
    return f"`{shown}`" if shown else ""
