"""Scores without the questions that the adapter was trained on: shown beside a benchmark's verdict, never part of its rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ft_pipeline.curate.artifact import CONTAMINATION, item_sha256
from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import EvalReport, GateResult
from ft_pipeline.gate.samples import Pair
from ft_pipeline.gate.wording import count, percent
from ft_pipeline.gate.written import read_asked
from ft_pipeline.store.artifacts import Artifact


def with_clean_scores(
    report: EvalReport, evidence: Mapping[str, Sequence[Pair] | str], parents: Mapping[str, Artifact]
) -> EvalReport:
    """The report, its benchmarks also scored without the items that curate found in training rows.

    Nothing changes where curate looked for no benchmark, or found none of the suite's questions.
    """
    found = found_items(parents["curated"])
    if not found:
        return report
    return replace(
        report, gates=tuple(_scored(gate, evidence.get(gate.name, ""), (parents, found)) for gate in report.gates)
    )


def found_items(curated: Artifact) -> dict[str, bool]:
    """Benchmark items that curate found, by the digest of their question; True for those that rows of the train split hold."""
    import pyarrow.parquet as pq

    if CONTAMINATION not in curated.manifest.files:
        return {}
    table = pq.read_table(curated.file(CONTAMINATION), columns=["item_sha256", "rows_trained"])
    found: dict[str, bool] = {}
    for row in table.to_pylist():
        if row["item_sha256"]:
            found[row["item_sha256"]] = found.get(row["item_sha256"], False) or row["rows_trained"] > 0
    return found


def _scored(
    gate: GateResult, pairs: Sequence[Pair] | str, where: tuple[Mapping[str, Artifact], Mapping[str, bool]]
) -> GateResult:
    parents, found = where
    if gate.kind != "benchmark" or isinstance(pairs, str):
        return gate
    questions = read_asked(parents[f"suite:{gate.name}"])
    known = {q.id: found[sha] for q in questions if (sha := q.item_sha256 or item_sha256(q.context)) in found}
    return _with_clean_score(gate, pairs, known) if known else gate


def _with_clean_score(gate: GateResult, pairs: Sequence[Pair], known: Mapping[str, bool]) -> GateResult:
    trained = {name for name, was_trained in known.items() if was_trained}
    facts: dict[str, Any] = {"contaminated_items": len(trained)}
    if removed := len(known) - len(trained):
        facts["items_kept_out_of_training"] = removed
    if not trained:
        return replace(gate, facts={**gate.facts, **facts})
    clean = [p for p in pairs if p.id not in trained]
    said = f"{gate.reason}; {len(trained):,} of its {count(len(pairs), 'question')} stand in training rows"
    if not clean:
        return replace(gate, facts={**gate.facts, **facts, "clean_rows": 0}, reason=f"{said}, so it shows nothing new")
    base, adapter = (math.fsum(scores) / len(clean) for scores in _sides(clean))
    facts |= {
        "clean_rows": len(clean), "clean_base": st.rounded(base), "clean_adapter": st.rounded(adapter),
        "clean_difference": st.rounded(adapter - base),
    }  # fmt: skip
    said += f": without them it went from {percent(base)} to {percent(adapter)} on {count(len(clean), 'question')}"
    return replace(gate, facts={**gate.facts, **facts}, reason=said)


def _sides(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    return [p.base_score for p in pairs], [p.adapter_score for p in pairs]
