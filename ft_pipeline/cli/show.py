"""How the command line shows things: tables, JSON, progress bars, sparklines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ft_pipeline.workers.messages import Listener, Message

console = Console(highlight=False)
BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def table(rows: Sequence[dict[str, Any]], *, as_json: bool, title: str = "", empty: str = "nothing yet") -> None:
    """Prints rows with equal keys as a table or as JSON."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=2, default=str))
        return
    if not rows:
        console.print(empty)
        return
    drawn = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for place, (name, value) in enumerate(rows[0].items()):
        right = "right" if isinstance(value, int | float) else "left"
        drawn.add_column(name.replace("_", " "), justify=right, no_wrap=place < 2, overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(_cell(value)) for value in row.values()))
    console.print(drawn)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def sparkline(values: Sequence[float], *, width: int = 48) -> str:
    """The values as a line of block characters, high to low."""
    if not values:
        return ""
    size = max(1, len(values) / width)
    points = [values[int(i * size)] for i in range(int(len(values) / size))]
    low, high = min(points), max(points)
    return "".join(BARS[int(7 * (v - low) / (high - low or 1))] for v in points)


@contextmanager
def progress_bars() -> Iterator[Listener]:
    """A listener that draws one bar per task and prints log lines above them; plain lines when there is no terminal."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(bar_width=32), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=False, disable=not console.is_terminal) as bars:
        yield _Bars(bars)


class _Bars:
    """Keeps one bar per task name."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.times: dict[str, tuple[float, float]] = {}
        """Task -> when it began and when it was last told, seconds."""

    def __call__(self, message: Message) -> None:
        """Shows one message."""
        if message.kind == "log":
            self.bars.console.print(f"  {message.text}", markup=False, soft_wrap=True)
        elif message.kind == "progress" and self.bars.disable:
            self._plain(message)
        elif message.kind == "progress":
            self._bar(message)

    def _bar(self, message: Message) -> None:
        if message.task not in self.tasks or (
            self.bars.tasks[self.tasks[message.task]].finished and message.done < message.total
        ):
            self.tasks[message.task] = self.bars.add_task(message.task, total=message.total, facts="")
        self.bars.update(self.tasks[message.task], completed=message.done, total=message.total, facts=_facts(message))

    def _plain(self, message: Message) -> None:
        """A line every five seconds and one at the end: a log file needs no more, and what is quick needs none."""
        now = time.monotonic()
        began, told = self.times.setdefault(message.task, (now, now))
        ended = message.done >= message.total
        if now - told > 5 or (ended and now - began > 2):
            self.times[message.task] = (began, now)
            amount = f"{message.done:,.0f} of {message.total:,.0f} {message.unit}"
            self.bars.console.print(f"  {message.task}: {amount}  {_facts(message)}", markup=False, soft_wrap=True)
        if ended:
            del self.times[message.task]


NOT_IN_A_LINE = {"grad_norm", "trained_tokens"}
"""Facts of a step that a person at a terminal does not watch."""


def _facts(message: Message) -> str:
    told = {k: v for k, v in message.facts.items() if k not in NOT_IN_A_LINE}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items())
