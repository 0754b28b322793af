"""The pictures of the console as SVG: the loss of every attempt, the lengths of a file's rows. Equal numbers give equal text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ft_pipeline.store.platform.events import Point

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 260, 56, 16, 16, 34
MOST_POINTS = 600
ATTEMPTS = ("#2459a8", "#1a7f4b", "#7b2d8b", "#c0562c")


def loss_curve(points: Sequence[Point], *, planned: int | None) -> str:
    """A line for each attempt: a resumed run makes the steps after its checkpoint again, and both are shown."""
    known = [p for p in points if isinstance(p.values.get("loss"), int | float)]
    if not known:
        return _svg(90, _text(LEFT, 50, "no step yet: the curve begins with the first"), "loss curve, empty")
    values = [float(p.values["loss"]) for p in known]
    low, high, last = min(values), max(values), max(planned or 0, *(p.step for p in known), 1)

    def at(step: int, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((loss - low) / ((high - low) or 1))
        return f"{x:.1f},{y:.1f}"

    lines = []
    for number, attempt in enumerate(sorted({p.attempt for p in known})):
        mine = [p for p in known if p.attempt == attempt]
        mine = mine[:: max(1, len(mine) // MOST_POINTS)]
        path = " ".join(at(p.step, float(p.values["loss"])) for p in mine)
        lines.append(
            f'<polyline points="{path}" fill="none" stroke="{ATTEMPTS[number % len(ATTEMPTS)]}" stroke-width="1.6"/>'
        )
    words = [
        _text(6, TOP + 8, f"{high:.3g}"), _text(6, HEIGHT - BOTTOM, f"{low:.3g}"), _text(LEFT, HEIGHT - 10, "step 0"),
        _text(WIDTH - 90, HEIGHT - 10, f"step {last:,}"),
    ]  # fmt: skip
    now = known[-1]
    told = f"training loss by step: from {values[0]:.3g} to {values[-1]:.3g} at step {now.step:,} of {last:,}"
    return _svg(HEIGHT, _axes() + "".join(lines) + "".join(words), told)


def length_bars(histogram: Sequence[Mapping[str, Any]]) -> str:
    """How many rows are of which length; a bucket is named by its upper end."""
    if not histogram:
        return _svg(60, _text(LEFT, 34, "no usable row"), "row lengths, empty")
    most, width = max(int(b["rows"]) for b in histogram), (WIDTH - LEFT - RIGHT) / len(histogram)
    parts = []
    for number, bucket in enumerate(histogram):
        rows, x = int(bucket["rows"]), LEFT + number * width
        height = (HEIGHT - TOP - BOTTOM) * rows / most
        name = "longer" if bucket["up_to_tokens"] is None else f"{bucket['up_to_tokens']:,}"
        parts.append(
            f'<rect x="{x + 3:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{max(2.0, width - 6):.1f}" height="{height:.1f}" '
            f'fill="#2459a8"><title>{rows:,} rows up to {name} tokens</title></rect>'
        )
        parts.append(_text(x + 3, HEIGHT - 14, name))
        parts.append(_text(x + 3, HEIGHT - BOTTOM - height - 3, f"{rows:,}"))
    return _svg(HEIGHT, _axes() + "".join(parts), "rows by length in tokens")


def _axes() -> str:
    return f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#9aa4af"/>'


def _svg(height: int, body: str, told: str) -> str:
    label = escape(told, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" class="picture">{body}</svg>'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'
