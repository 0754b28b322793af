"""Pictures and tables of packed shards for a metadata page: the length histogram, decoded rows with their trained tokens coloured."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

COLUMNS = 118
DPI, LETTER_PIXELS, LETTER_SHARE = 110, 7, 0.602
"""A letter is so wide, and so wide as a share of its size (DejaVu Sans Mono): pieces of a line are placed by counting letters."""
HEAD_LINES, TAIL_LINES = 10, 6
BREAK = "\u21b5"
STYLES: dict[str, dict[str, Any]] = {
    "heading": {"color": "black", "weight": "bold"},
    "context": {"color": "#8a8a8a"},
    "trained": {"color": "#0b5d1e", "bbox": {"facecolor": "#d3f2da", "edgecolor": "none", "pad": 0.8}},
}
Line = list[tuple[str, str]]
"""Pieces of text, each with the name of its style."""


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
    return f"![rows by length]({_png(figure)})"


def samples_picture(samples: Sequence[Mapping[str, Any]]) -> str:
    """Markdown image of decoded rows, trained tokens in green, the context in grey. A picture, because Dagster's viewer strips colours."""
    from matplotlib.figure import Figure

    lines = [line for sample in samples for line in _sample_lines(sample)]
    figure = Figure(figsize=(COLUMNS * LETTER_PIXELS / DPI / 0.98, 0.16 * len(lines) + 0.2), dpi=DPI)
    axes = figure.add_axes((0.01, 0, 0.98, 1))
    axes.set(xlim=(0, COLUMNS), ylim=(len(lines) + 0.5, -0.5))
    axes.axis("off")
    points = LETTER_PIXELS / LETTER_SHARE * 72 / DPI
    for height, line in enumerate(lines):
        column = 0
        for text, style in line:
            axes.text(
                column,
                height,
                text,
                family="monospace",
                size=points,
                va="center",
                parse_math=False,
                **STYLES[style],
            )
            column += len(text)
    return f"![trained tokens in green]({_png(figure)})"


def split_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table: rows, windows, tokens, trained tokens and fill of each split."""
    lines = ["| split | rows | windows | tokens | trained | full |", "|---|---|---|---|---|---|"]
    for name, s in splits.items():
        lines.append(
            f"| {name} | {s['rows']:,} | {s['windows']:,} | {s['tokens']:,} | {s['trained_tokens']:,} | {s['fill']:.1%} |"
        )
    return "\n".join(lines)


def _sample_lines(sample: Mapping[str, Any]) -> list[Line]:
    """A heading, then the text; of a long row the beginning and the end, where its end-of-turn token is."""
    trained = sum(len(text) for text, on in sample["pieces"] if on) / max(
        1, sum(len(text) for text, _ in sample["pieces"])
    )
    heading = f"{sample['row_id']}: {sample['tokens']:,} tokens, {trained:.0%} of the text trained"
    lines = _wrapped(sample["pieces"])
    if len(lines) > HEAD_LINES + TAIL_LINES:
        gap: Line = [(f"... {len(lines) - HEAD_LINES - TAIL_LINES} lines ...", "heading")]
        lines = [*lines[:HEAD_LINES], gap, *lines[-TAIL_LINES:]]
    return [[(heading, "heading")], *lines, []]


def _wrapped(pieces: Sequence[tuple[str, bool]]) -> list[Line]:
    """Lines of at most COLUMNS characters; a line break of the text is shown and breaks the line."""
    lines: list[Line] = [[]]
    room = COLUMNS
    for text, trained in pieces:
        for part in text.replace("\t", "    ").replace("\n", f"{BREAK}\n").splitlines(keepends=True):
            bare = part.rstrip("\n")
            while bare:
                lines[-1].append((bare[:room], "trained" if trained else "context"))
                bare, room = bare[room:], room - len(bare[:room])
                if room == 0:
                    lines, room = [*lines, []], COLUMNS
            if part.endswith("\n") and lines[-1]:
                lines, room = [*lines, []], COLUMNS
    return lines if lines[-1] else lines[:-1]


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # letters that matplotlib's font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
