"""The two pictures of a model card as SVG: the loss over the steps, and every gate with its interval. Equal numbers give equal text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 240, 54, 34, 24
COLOURS = {"PASS": "#1a7f4b", "FAIL": "#c0362c", "INCONCLUSIVE": "#b7791f", "ERROR": "#7b2d8b"}
MAX_POINTS = 600
FONT = "font:11px system-ui,sans-serif"


def loss_svg(losses: Sequence[Mapping[str, Any]]) -> str:
    """Training loss as a line, validation loss as dots, over the steps."""
    points = [(float(e["step"]), float(e["loss"])) for e in losses if "step" in e and e.get("loss") is not None]
    dots = [
        (float(e["step"]), float(e["validation_loss"]))
        for e in losses
        if e.get("validation_loss") is not None and "step" in e
    ]
    if not points:
        return _svg(60, _text(LEFT, 34, "no loss was recorded"))
    points = points[:: max(1, len(points) // MAX_POINTS)]
    values = [v for _, v in points + dots]
    low, high = min(values), max(values)
    last = max(step for step, _ in points) or 1.0

    def at(step: float, value: float) -> tuple[float, float]:
        share = (value - low) / ((high - low) or 1)
        return LEFT + (WIDTH - LEFT - 12) * step / last, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#c0562c"/>' for x, y in (at(*d) for d in dots))
    words = [
        _text(LEFT, 14, "loss (line: training" + (", dots: validation)" if dots else ")")),
        _text(4, at(0, high)[1] + 4, f"{high:.3g}"), _text(4, at(0, low)[1] + 4, f"{low:.3g}"),
        _text(LEFT, HEIGHT - 8, "step 0"), _text(WIDTH - 70, HEIGHT - 8, f"step {last:,.0f}"),
    ]  # fmt: skip
    axes = f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 12}" fill="none" stroke="#9aa4af"/>'
    return _svg(
        HEIGHT, axes, f'<polyline points="{line}" fill="none" stroke="#2459a8" stroke-width="1.4"/>', marks, *words
    )


def forest_svg(gates: Sequence[Mapping[str, Any]]) -> str:
    """Each measured gate's interval on its own axis value (difference to the base; of safety gates the adapter's score)."""
    shown = [g for g in gates if g.get("low") is not None and g.get("high") is not None]
    if not shown:
        return _svg(60, _text(LEFT, 34, "no gate was measured"))
    ends = [float(g[end]) for g in shown for end in ("low", "high")] + [0.0]
    low, high = min(ends), max(ends)
    span, begin, room = (high - low) or 1.0, 220, WIDTH - 240

    def x(value: float) -> float:
        return begin + room * (value - low) / span

    height = 40 + 26 * len(shown)
    parts = [f'<path d="M{x(0):.1f} 22V{height - 12}" stroke="#333" stroke-dasharray="4 3"/>', _text(x(0) - 3, 14, "0")]
    for row, gate in enumerate(shown):
        parts += _interval(gate, 38 + 26 * row, x=x)
    return _svg(height, *parts)


def _interval(gate: Mapping[str, Any], y: float, *, x: Any) -> list[str]:
    colour, left, right = COLOURS.get(str(gate["verdict"]), "#7a7f87"), x(float(gate["low"])), x(float(gate["high"]))
    made = [
        _text(4, y + 4, f"{str(gate['name'])[:26]}  {gate['verdict']}"),
        f'<path d="M{left:.1f} {y}H{right:.1f}" stroke="{colour}" stroke-width="4"/>',
    ]
    middle = gate.get("adapter") if gate.get("kind") == "safety" else gate.get("difference")
    if middle is not None:
        made.append(f'<circle cx="{x(float(middle)):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    threshold = gate.get("threshold")
    if threshold is not None and left - 400 < x(float(threshold)) < WIDTH:
        at = x(float(threshold))
        made.append(f'<path d="M{at:.1f} {y - 9}V{y + 9}" stroke="{colour}"/>')
    return made


def _text(x: float, y: float, said: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{FONT}" fill="#1d2329">{escape(said)}</text>'


def _svg(height: float, *parts: str) -> str:
    body = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img">{body}</svg>\n'
