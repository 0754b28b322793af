"""Cron expressions: what is wrong with one, said before a recipe with it is accepted."""

from __future__ import annotations

import re

FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}
LONGEST_MONTH = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


def cron_fault(expression: str) -> str | None:
    """What is wrong with an expression of five numeric fields, None when it names a time that comes.

    Narrower than Dagster's own check: a schedule that Dagster refuses would keep the whole code location from loading.
    """
    parts = expression.split()
    if len(parts) != len(FIELDS):
        return f"{len(parts)} fields, not 5 ({' '.join(FIELDS)})"
    values = {name: _cron_values(part, *FIELDS[name]) for name, part in zip(FIELDS, parts, strict=True)}
    if wrong := [name for name in FIELDS if not values[name]]:
        low, high = FIELDS[wrong[0]]
        part = parts[list(FIELDS).index(wrong[0])]
        return f"{wrong[0]} {part!r} is not *, a number from {low} to {high}, a range or a list of them"
    if all(min(values["day"]) > LONGEST_MONTH.get(month, 31) for month in values["month"]):
        return f"no month {parts[3]} has a day {parts[2]}"
    return None


def _cron_values(part: str, low: int, high: int) -> set[int]:
    """The numbers of one field; empty when it is none."""
    values: set[int] = set()
    for piece in part.split(","):
        found = re.fullmatch(r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([1-9][0-9]?))?", piece)
        if not found:
            return set()
        first = int(found[1] or low)
        last = int(found[2]) if found[2] else first if found[1] and not found[3] else high
        if not low <= first <= last <= high:
            return set()
        values.update(range(first, last + 1, int(found[3] or 1)))
    return values
