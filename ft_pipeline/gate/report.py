"""Writes an `eval_report`: verdicts.json, samples.parquet, forest.png and one HTML page that a person can read and print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.gate import wording
from ft_pipeline.gate.artifact import FOREST, REPORT, SAMPLES, VERDICTS, EvalReport, GateResult, report_json
from ft_pipeline.gate.figures import COLOURS, draw_forest
from ft_pipeline.gate.samples import Pair, columns_of, pair_rows, write_rows
from ft_pipeline.store.artifacts import Draft
from ft_pipeline.store.fingerprint import sha256_json

TEMPLATE = Path(__file__).parent / "report.html.jinja"
WORST_ROWS = 8
LINE_WIDTH, MARGIN = 620, 30


def write_report(draft: Draft, report: EvalReport, evidence: Mapping[str, Sequence[Pair]]) -> None:
    """Writes the four files into the draft. Pictures and tables are hashed by their content, not by a library's bytes."""
    folder = draft.folder
    rows = [row for name, pairs in evidence.items() for row in pair_rows(name, pairs)]
    (folder / VERDICTS).write_bytes(report_json(report))
    draft.logical[SAMPLES] = write_rows(folder / SAMPLES, rows, columns_of(Pair, gate="string"))
    draw_forest(folder / FOREST, report.gates)
    draft.logical[FOREST] = sha256_json(["forest", json.loads(report_json(report))])
    parents = {role: ref.digest for role, ref in draft.spec.parents.items()}
    page = report_page(report, evidence, config=draft.spec.config, parents=parents)
    (folder / REPORT).write_text(page, encoding="utf-8")
    draft.counts.update(gates=len(report.gates), samples=len(rows))


def report_page(
    report: EvalReport, evidence: Mapping[str, Sequence[Pair]], *, config: Mapping[str, Any], parents: Mapping[str, str]
) -> str:
    """The self-contained page: equal reports give equal text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        measured=wording.measured,
        cure=wording.cure,
        number_line=number_line,
        colours=COLOURS,
        worst={g.name: worst(g, evidence) for g in report.gates},
        config=json.dumps(config, indent=1, sort_keys=True),
        parents=parents,
    )


def worst(gate: GateResult, evidence: Mapping[str, Sequence[Pair]]) -> list[Pair]:
    """The samples that cost the gate most: lost against the base first, then wrong in both arms."""
    pairs = list(evidence.get("safety" if gate.kind == "over_refusal" else gate.name, ()))
    sign = 1
    if gate.kind in ("safety", "over_refusal"):
        pairs = [p for p in pairs if (p.reference == "harmful") == (gate.kind == "safety")]
        sign = -1 if gate.kind == "over_refusal" else 1
    bad = [p for p in pairs if (p.adapter_score > 0 if sign < 0 else p.adapter_score < 1)]
    bad.sort(key=lambda p: (sign * (p.adapter_score - p.base_score), sign * p.adapter_score, p.id))
    return bad[:WORST_ROWS]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A number line in pixels: where the interval, the point, zero and the threshold are, and its ticks."""

    low: float
    point: float
    high: float
    threshold: float
    ticks: tuple[tuple[float, str], ...]


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


def _ticks(left: float, right: float) -> list[float]:
    """Four to eight round numbers in a range."""
    step = next(
        s for s in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (right - left) / s <= 8 or s == 1.0
    )
    first = -int(-left // step) if left < 0 else int(left // step) + 1
    return [round(step * k, 6) for k in range(first - 1, first + 10) if left <= step * k <= right]
