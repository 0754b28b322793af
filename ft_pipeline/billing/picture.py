"""A month as a picture: money a day, one colour for each purpose, as SVG. Equal numbers give equal text."""

from __future__ import annotations

from collections import defaultdict
from html import escape

from ft_pipeline.billing.month import Month

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 260, 64, 40, 28
COLOURS = {
    "useful": "#1a7f4b", "replayed": "#c0562c", "checkpoint": "#7aa6d6", "evaluation": "#2459a8", "data": "#9aa4af",
    "serve": "#7b2d8b", "storage": "#b7791f",
}  # fmt: skip
"""Purposes that cost money, from the axis upwards."""
FONT = "font:12px system-ui,sans-serif"


def month_svg(month: Month) -> str:
    """Bars of 31 days; the legend says each purpose's total."""
    days = _days(month)
    most = max((sum(day.values()) for day in days.values()), default=0.0)
    parts = [
        _legend(days),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 8}" fill="none" stroke="#9aa4af"/>',
    ]
    if not most:
        parts.append(_text(LEFT + 12, HEIGHT // 2, f"nothing was spent in {month.month}"))
    else:
        parts += [_text(4, TOP + 10, f"{most:.3g}"), _text(4, TOP + 26, month.currency)]
        parts += [_bar(day, spent, most) for day, spent in sorted(days.items())]
    parts += [_text(_x(d) + 2, HEIGHT - 10, str(d)) for d in (1, 8, 15, 22, 29)]
    title = f"<title>{escape(month.tenant)}, {month.month}: {month.spent:.2f} {escape(month.currency)}</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{title}{"".join(parts)}</svg>'


def _days(month: Month) -> dict[int, dict[str, float]]:
    """Day -> purpose -> money. Storage is spread over the month: it has no day and stands on the first."""
    days: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for bill in month.jobs:
        for c in bill.charges:
            if c.money:
                days[int(c.started_at[8:10])][c.purpose] += c.money
    for answered, money in month.answers:
        days[int(answered.day[8:10])]["serve"] += money
    if month.storage:
        days[1]["storage"] += month.storage
    return days


def _x(day: int) -> float:
    return LEFT + (WIDTH - LEFT - 8) * (day - 1) / 31


def _bar(day: int, spent: dict[str, float], most: float) -> str:
    room, top, parts = HEIGHT - TOP - BOTTOM, float(HEIGHT - BOTTOM), []
    for purpose, colour in COLOURS.items():
        if height := room * spent.get(purpose, 0.0) / most:
            top -= height
            parts.append(
                f'<rect x="{_x(day) + 2:.1f}" y="{top:.1f}" width="17" height="{height:.1f}" fill="{colour}"/>'
            )
    return "".join(parts)


def _legend(days: dict[int, dict[str, float]]) -> str:
    totals = {p: sum(day.get(p, 0.0) for day in days.values()) for p in COLOURS}
    parts, x = [], 8
    for purpose, money in totals.items():
        if money:
            text = f"{purpose} {money:.2f}"
            parts.append(
                f'<rect x="{x}" y="8" width="10" height="10" fill="{COLOURS[purpose]}"/>' + _text(x + 14, 17, text)
            )
            x += 26 + 7 * len(text)
    return "".join(parts)


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" style="{FONT}" fill="#333">{escape(text)}</text>'
