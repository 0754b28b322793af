"""Pictures of verdicts: one forest plot over all gates, each measured in points from the line that the policy draws."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.gate.artifact import GateResult, Verdict

COLOURS = {
    Verdict.PASS: "#1a7f4b",
    Verdict.FAIL: "#c0362c",
    Verdict.INCONCLUSIVE: "#b7791f",
    Verdict.ERROR: "#7b2d8b",
    Verdict.SKIPPED: "#7a7f87",
}

WIDEST = 12
"""Points to each side of the line: what is decided happens there, and a gain of 50 points would hide it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clearance:
    """How far a gate's measurement lies on the good side of its threshold, in points; negative is the bad side."""

    low: float
    point: float
    high: float


def clearance(gate: GateResult) -> Clearance | None:
    """The gate's interval measured from its threshold, None when it was not measured."""
    point = gate.adapter if gate.kind == "safety" else gate.difference
    if gate.low is None or gate.high is None or gate.threshold is None or point is None:
        return None
    low, middle, high = (round(100 * (v - gate.threshold), 4) for v in (gate.low, point, gate.high))
    if gate.kind == "over_refusal":
        return Clearance(low=-high, point=-middle, high=-low)
    return Clearance(low=low, point=middle, high=high)


def draw_forest(path: Path, gates: Sequence[GateResult]) -> None:
    """Writes the forest plot as PNG; equal gates give equal bytes on one machine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.1 + 0.42 * len(gates)), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, gate in enumerate(gates):
        colour, found = COLOURS[gate.verdict], clearance(gate)
        if found is None:
            axes.text(0, row, f" {gate.verdict.lower()}", color=colour, va="center", fontsize=9)
            continue
        _draw(axes, row, (found, colour))
    axes.axvline(0, color="#333333", linewidth=1.2, linestyle="--")
    axes.set_xlim(-WIDEST * 1.15, WIDEST * 1.15)
    axes.set_yticks(range(len(gates)), [f"{g.name}  {g.verdict}" for g in gates], fontsize=9)
    axes.set_ylim(len(gates) - 0.5, -0.5)
    axes.set_xlabel("points from the policy's line (right of it is good)", fontsize=9)
    axes.set_title("Gates: measured, with one-sided bounds", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.savefig(path, metadata={"Software": None})


def _draw(axes: Any, row: int, mark: tuple[Clearance, str]) -> None:
    """One interval; where it lies beyond the picture an arrow at the edge and its distance."""
    found, colour = mark
    if abs(found.point) > WIDEST:
        edge, arrow = (WIDEST, ">") if found.point > 0 else (-WIDEST, "<")
        axes.plot([edge], [row], arrow, color=colour, markersize=8)
        side = "right" if found.point > 0 else "left"
        axes.annotate(
            f"{found.point:+.0f}", (edge, row), (-10 if found.point > 0 else 10, 0), textcoords="offset points",
            ha=side, va="center", fontsize=9, color=colour,
        )  # fmt: skip
        return
    low, high = max(found.low, -WIDEST * 1.15), min(found.high, WIDEST * 1.15)
    axes.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
    axes.plot([found.point], [row], "o", color=colour, markersize=7)


def as_markdown(path: Path, title: str) -> str:
    """A PNG as a Markdown image that needs no other file."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
