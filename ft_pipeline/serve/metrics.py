"""What the server counts, in Prometheus' text format: requests, tokens, latencies per tenant and model version, errors by status."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from ft_pipeline.serve.engine import Piece, Served

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds, upper ends."""
HELP = {
    "ft_requests_total": "Answers by how they ended: stop, length, left (the client went away), error.",
    "ft_errors_total": "Requests that were refused or failed, by HTTP status.",
    "ft_prompt_tokens_total": "Prompt tokens read.",
    "ft_completion_tokens_total": "Tokens generated.",
    "ft_request_seconds": "From the request to its last token.",
    "ft_first_token_seconds": "From the request to its first text.",
    "ft_queue_seconds": "From the request until its prompt was read.",
}


class Metrics:
    """Counters and histograms since the start. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, dict[str, list[float]]] = defaultdict(dict)

    def refused(self, status: int) -> None:
        """A request that got no answer."""
        self._add("ft_errors_total", labels(status=str(status)), 1)

    def watched(self, served: Served, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The same pieces; counts them when they end, fail, or are read no further."""
        who = labels(tenant=served.owned_by, model=served.id)
        start, first, last, outcome = time.monotonic(), None, Piece(text=""), "error"
        try:
            for last in pieces:
                first = first or time.monotonic()
                yield last
            outcome = last.finish or "error"
        except GeneratorExit:
            outcome = "left"
            raise
        finally:
            self._add("ft_requests_total", labels(tenant=served.owned_by, model=served.id, outcome=outcome), 1)
            if last.finish:
                self._add("ft_prompt_tokens_total", who, last.prompt_tokens)
                self._add("ft_completion_tokens_total", who, last.completion_tokens)
                self._observe("ft_queue_seconds", who, last.waited_seconds)
                self._observe("ft_first_token_seconds", who, (first or start) - start)
                self._observe("ft_request_seconds", who, time.monotonic() - start)

    def text(self, more: Mapping[str, float]) -> str:
        """All of it, and numbers that come from elsewhere: `_total` ones are counters, the others gauges."""
        with self._lock:
            rows = [line for name, series in sorted(self._counts.items()) for line in _counter(name, series)]
            rows += [line for name, series in sorted(self._histograms.items()) for line in _histogram(name, series)]
        for name, value in sorted(more.items()):
            rows += [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}", f"{name} {value:g}"]
        return "\n".join([*rows, ""])

    def _add(self, name: str, label: str, number: float) -> None:
        with self._lock:
            self._counts[name][label] += number

    def _observe(self, name: str, label: str, seconds: float) -> None:
        """A histogram's row: a count for each bucket, one above the last, and the sum."""
        with self._lock:
            row = self._histograms[name].setdefault(label, [0.0] * (len(BUCKETS) + 2))
            row[bisect_left(BUCKETS, seconds)] += 1
            row[-1] += seconds


def labels(**values: str) -> str:
    """`tenant="acme",model="acme/router@3"`, escaped."""
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for k, v in values.items()}
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())


def _counter(name: str, series: Mapping[str, float]) -> list[str]:
    rows = [f"{name}{{{label}}} {value:.15g}" for label, value in sorted(series.items())]
    return [f"# HELP {name} {HELP[name]}", f"# TYPE {name} counter", *rows]


def _histogram(name: str, series: Mapping[str, list[float]]) -> list[str]:
    rows = [f"# HELP {name} {HELP[name]}", f"# TYPE {name} histogram"]
    for label, numbers in sorted(series.items()):
        below = 0.0
        for end, number in zip([*BUCKETS, "+Inf"], numbers[:-1], strict=True):
            below += number
            rows.append(f'{name}_bucket{{{label},le="{end}"}} {below:g}')
        rows += [f"{name}_sum{{{label}}} {numbers[-1]:g}", f"{name}_count{{{label}}} {below:g}"]
    return rows
