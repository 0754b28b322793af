"""Writes an `eval_report`: verdicts.json, samples.parquet, forest.png and one HTML page that a person can read and print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft_pipeline.gate import page, plots, sentences, wording
from ft_pipeline.gate.artifact import FOREST, REPORT, SAMPLES, VERDICTS, EvalReport, GateResult, report_json
from ft_pipeline.gate.calibration import calibration
from ft_pipeline.gate.figures import COLOURS, draw_forest
from ft_pipeline.gate.samples import Pair, columns_of, pair_rows, write_rows
from ft_pipeline.store.artifacts import Draft
from ft_pipeline.store.fingerprint import sha256_json

TEMPLATE = Path(__file__).parent / "report.html.jinja"
WORST_ROWS = 8


def write_report(draft: Draft, report: EvalReport, evidence: Mapping[str, Sequence[Pair]]) -> None:
    """Writes the four files into the draft. Pictures and tables are hashed by their content, not by a library's bytes."""
    folder = draft.folder
    rows = [row for name, pairs in evidence.items() for row in pair_rows(name, pairs)]
    (folder / VERDICTS).write_bytes(report_json(report))
    draft.logical[SAMPLES] = write_rows(folder / SAMPLES, rows, columns_of(Pair, gate="string"))
    draw_forest(folder / FOREST, report.gates)
    draft.logical[FOREST] = sha256_json(["forest", json.loads(report_json(report))])
    parents = {role: ref.digest for role, ref in draft.spec.parents.items()}
    text = report_page(report, evidence, config=draft.spec.config, parents=parents)
    (folder / REPORT).write_text(text, encoding="utf-8")
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
        plots=plots,
        sentences=sentences,
        steps=page.steps(report),
        colours=COLOURS,
        worst={g.name: worst(g, evidence) for g in report.gates},
        calibrations=calibrations(report, evidence),
        config=settings_of(dict(sorted(config.items()))),
        parents=parents,
    )


def calibrations(report: EvalReport, evidence: Mapping[str, Sequence[Pair]]) -> dict[str, list[plots.Curve]]:
    """The benchmarks whose answers hold log-likelihoods, by name."""
    found = {g.name: calibration(evidence.get(g.name, ())) for g in report.gates if g.kind == "benchmark"}
    return {name: plots.curves(arms) for name, arms in found.items() if arms}


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


def settings_of(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """The configuration as `section.field` and its value, nested sections flattened."""
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            rows += settings_of(value, f"{key}.")
        else:
            rows.append((key, value if isinstance(value, str) else json.dumps(value)))
    return rows
