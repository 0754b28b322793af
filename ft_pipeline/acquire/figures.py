"""Pictures and tables of the acquire door."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence


def bar_chart(sizes: Mapping[str, float], *, title: str, unit: str) -> str:
    """Markdown with an inline PNG of horizontal bars, the largest on top; at most twelve."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:12][::-1]
    figure = Figure(figsize=(7, 2.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh([name[-40:] for name, _ in shown], [size for _, size in shown], color="#3b6ea5")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return f"![{title}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})"


def digest_table(digests: Mapping[str, str]) -> str:
    """Markdown table of file classes and their digests."""
    return _table(("files", "sha256"), [(name, f"`{digest[:16]}`") for name, digest in digests.items()])


def file_table(files: Sequence[Mapping[str, object]]) -> str:
    """Markdown table of the first twenty files of a raw dataset."""
    rows = [(str(f["name"]), f"{f['bytes']:,}", f"`{str(f['sha256'])[:16]}`") for f in files[:20]]
    more = [(f"... {len(files) - 20} more", "", "")] if len(files) > 20 else []
    return _table(("file", "bytes", "sha256"), [*rows, *more])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "|".join(cell.replace("|", "\\|") for cell in line) + "|" for line in lines)
