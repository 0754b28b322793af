"""Where things lie in the small pictures of the report page, in pixels of their own axis; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.gate import wording
from ft_pipeline.gate.artifact import GateResult
from ft_pipeline.gate.calibration import Arm
from ft_pipeline.gate.figures import WIDEST, clearance

LINE_WIDTH, MARGIN = 620, 30
FOREST_LEFT, FOREST_RIGHT, FOREST_ROW = 220, 600, 26
BARS_LEFT, BARS_RIGHT, BAR_HEIGHT = 220, 600, 17
MOST_BARS = 24
"""A suite of 57 subjects is a table; the picture shows those that fell most."""
SQUARE, SQUARE_MARGIN = 260, 34
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A number line in pixels: where the interval, the point, zero and the threshold are, and its ticks."""

    low: float
    point: float
    high: float
    threshold: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForestRow:
    """One gate of the overview; `said` instead of an interval where none fits into the picture."""

    name: str
    verdict: str
    y: float
    low: float
    point: float
    high: float
    said: str
    drawn: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One subject: adapter minus base."""

    name: str
    y: float
    x: float
    width: float
    said: str
    said_x: float
    anchor: str
    flagged: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """The subjects that fell most first."""

    bars: tuple[Bar, ...]
    zero: float
    height: int
    num_subjects: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One arm of a calibration plot."""

    arm: Arm
    path: str
    """The points of an SVG polyline."""
    dots: tuple[tuple[float, float, float, str], ...]
    """x, y, radius and what the bin holds."""


def number_line(gate: GateResult) -> Line | None:
    """The gate's interval on its own axis, None when it was not measured."""
    point = gate.adapter if gate.kind == "safety" else gate.difference
    if gate.low is None or gate.high is None or gate.threshold is None or point is None:
        return None
    marks = [gate.low, gate.high, gate.threshold, point, *([] if gate.kind == "safety" else [0.0])]
    room = max((max(marks) - min(marks)) * 0.08, 0.002)
    left, right = min(marks) - room, max(marks) + room

    def place(value: float) -> float:
        return round(MARGIN + (value - left) / (right - left) * (LINE_WIDTH - 2 * MARGIN), 1)

    return Line(
        low=place(gate.low), point=place(point), high=place(gate.high), threshold=place(gate.threshold),
        ticks=tuple((place(v), wording.measured(v, signed=gate.kind != "safety")) for v in _ticks(left, right)),
    )  # fmt: skip


def forest(gates: Sequence[GateResult]) -> list[ForestRow]:
    """Every gate measured in points from the policy's line, as in forest.png."""
    return [_forest_row(gate, 14 + FOREST_ROW * row) for row, gate in enumerate(gates)]


def _forest_row(gate: GateResult, y: float) -> ForestRow:
    found, middle = clearance(gate), (FOREST_LEFT + FOREST_RIGHT) / 2

    def place(points: float) -> float:
        return round(middle + max(min(points, WIDEST), -WIDEST) / WIDEST * (FOREST_RIGHT - FOREST_LEFT) / 2, 1)

    if found is None:
        said = "not measured"
        return ForestRow(name=gate.name, verdict=gate.verdict, y=y, low=middle, point=middle, high=middle, said=said, drawn=False)  # fmt: skip
    said = f"{found.point:+.1f}" if abs(found.point) > WIDEST else ""
    return ForestRow(
        name=gate.name, verdict=gate.verdict, y=y, low=place(found.low), point=place(found.point), high=place(found.high),
        said=said, drawn=True,
    )  # fmt: skip


def subject_bars(gate: GateResult) -> Bars | None:
    """The subjects of a benchmark, those that fell most first; None where it has none."""
    subjects: Sequence[Mapping[str, Any]] = gate.facts.get("subjects", ())
    if not subjects:
        return None
    flagged = set(gate.facts.get("subjects_flagged", ()))
    moved = sorted(
        ((s["adapter"] - s["base"], s["name"]) for s in subjects), key=lambda m: (m[1] not in flagged, m[0], m[1])
    )
    shown = sorted(moved[:MOST_BARS])
    reach = max(abs(change) for change, _ in shown) or 0.01
    low, high = min(0.0, shown[0][0]), max(0.0, shown[-1][0])
    left, right = BARS_LEFT + (46 if low < 0 else 0), BARS_RIGHT - (46 if high > 0 else 0)
    zero = left + (right - left) * (-low / ((high - low) or reach))
    scale = (right - left) / ((high - low) or reach)
    bars = []
    for row, (change, name) in enumerate(shown):
        width, y = round(abs(change) * scale, 1), 4 + BAR_HEIGHT * row
        x = round(zero - width if change < 0 else zero, 1)
        said_x = x - 5 if change < 0 else x + width + 5
        bars.append(
            Bar(
                name=name, y=y, x=x, width=width, said=wording.measured(change, signed=True), said_x=round(said_x, 1),
                anchor="end" if change < 0 else "start", flagged=name in flagged,
            )
        )  # fmt: skip
    return Bars(bars=tuple(bars), zero=round(zero, 1), height=8 + BAR_HEIGHT * len(shown), num_subjects=len(subjects))


def curves(arms: Sequence[Arm]) -> list[Curve]:
    """The arms of a calibration plot, in a square of 260 pixels: right of the diagonal is too sure, left of it too modest."""
    inside = SQUARE - 2 * SQUARE_MARGIN

    def at(confidence: float, accuracy: float) -> tuple[float, float]:
        return round(SQUARE_MARGIN + confidence * inside, 1), round(SQUARE - SQUARE_MARGIN - accuracy * inside, 1)

    made = []
    for arm in arms:
        most = max(b.rows for b in arm.bins)
        dots = tuple(
            (*at(b.confidence, b.accuracy), round(2 + 4 * (b.rows / most) ** 0.5, 1),
             f"{arm.name}: {b.rows:,} answers, {wording.percent(b.confidence)} sure, {wording.percent(b.accuracy)} right")
            for b in arm.bins
        )  # fmt: skip
        made.append(Curve(arm=arm, path=" ".join(f"{x},{y}" for x, y, *_ in dots), dots=dots))
    return made


def _ticks(left: float, right: float) -> list[float]:
    """Four to eight round numbers in a range."""
    step = next(s for s in STEPS if (right - left) / s <= 8 or s == 1.0)
    first = -int(-left // step) if left < 0 else int(left // step) + 1
    return [round(step * k, 6) for k in range(first - 1, first + 10) if left <= step * k <= right]
