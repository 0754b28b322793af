"""The picture of a sweep: the objective over each parameter, a point a trial, the best one marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ft_pipeline.sweeps.design import short, shown
from ft_pipeline.sweeps.result import LOST, Result, Row, score

BLUE, RED, GREY = "#3b6ea5", "#c0392b", "#9aa1a9"
DECADE = 8
"""Largest over smallest value from which on an axis is logarithmic."""
COLUMNS = 3


def draw(path: Path, result: Result) -> None:
    """Writes the picture as PNG. Trials that failed stand at the upper edge, those that wait are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(result.sweep.parameters)
    across = min(COLUMNS, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(max(5.0, 3.6 * across), 0.5 + 2.9 * down), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place < len(names):
            _panel(axes, names[place], result)
            axes.set_ylabel(_objective(result) if place % across == 0 else "", fontsize=9)
        else:
            axes.set_visible(False)
    figure.suptitle(_title(result), fontsize=10, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _title(result: Result) -> str:
    best = result.winner
    if best is None:
        return f"{result.recipe}: no trial is measured yet"
    told = ", ".join(f"{n} {shown(v)}" for n, v in zip(short(best.parameters), best.parameters.values(), strict=True))
    return f"{result.recipe}: best of {sum(score(r, result.sweep) is not None for r in result.rows)} trials is {told}"


def _objective(result: Result) -> str:
    return "holdout score (more is better)" if result.sweep.objective == "holdout" else "validation loss, nats"


def _panel(axes: Any, name: str, result: Result) -> None:
    values = [row.parameters[name] for row in result.rows]
    place = _places(axes, values)
    points = [(place(r.parameters[name]), abs(value), r) for r in result.rows if (value := score(r, result.sweep)) is not None]  # fmt: skip
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=30, color=BLUE, alpha=0.75, linewidths=0)
    if best := result.winner:
        where = next((x, y) for x, y, row in points if row.number == best.number)
        axes.scatter(*where, s=110, facecolors="none", edgecolors=RED, linewidths=1.6)
        axes.annotate(f"{where[1]:.4g}", where, (7, 7), textcoords="offset points", fontsize=8, color=RED)
    _failed(axes, [place(r.parameters[name]) for r in _lost(result.rows)])
    axes.set_xlabel(name, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.margins(y=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e6ea", linewidth=0.7)
    axes.set_axisbelow(True)


def _lost(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.state in LOST]


def _failed(axes: Any, places: list[float]) -> None:
    if places:
        axes.plot(places, [0.97] * len(places), "x", color=GREY, markersize=7, transform=axes.get_xaxis_transform())
        axes.annotate("x failed", (0.99, 0.9), xycoords="axes fraction", ha="right", fontsize=7, color=GREY)


def _places(axes: Any, values: Sequence[Any]) -> Any:
    """Value -> place on the axis: numbers by size, others one beside the other. Few values are written as they are."""
    distinct = list({shown(v): v for v in values}.values())
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in distinct):
        names = sorted(shown(v) for v in distinct)
        axes.set_xticks(range(len(names)), [name if len(name) < 18 else f"{name[:16]}.." for name in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
        return lambda value: names.index(shown(value))
    lowest, highest = min(distinct), max(distinct)
    if lowest > 0 and highest / lowest > DECADE:
        axes.set_xscale("log")
    if len(distinct) <= 6:
        axes.set_xticks(sorted(distinct), [shown(v) for v in sorted(distinct)])
        axes.minorticks_off()
    elif axes.get_xscale() == "linear":
        axes.ticklabel_format(axis="x", useMathText=True, scilimits=(-3, 4))
    axes.margins(x=0.12)
    return lambda value: float(value) if math.isfinite(value) else lowest
