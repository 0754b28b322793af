"""The verdict on the holdout where an adapter was trained on questions of it: what it learned by heart is no evidence.

Leaked rows never carry a PASS: the rule is applied to the other rows alone, and the worse of the two verdicts holds. Where every row
leaked nothing is left to show a gain, and where no training data is known the questions are asked in other words (gate/reworded.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate import verdicts
from ft_pipeline.gate.artifact import EvalReport, GateResult, Noise, Verdict
from ft_pipeline.gate.asking import Asking
from ft_pipeline.gate.holdout import read_tasks
from ft_pipeline.gate.leaks import Leak, datasets_behind, leak_of
from ft_pipeline.gate.metrics import metric_of
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.reworded import gain_in_other_words
from ft_pipeline.gate.samples import Pair
from ft_pipeline.gate.verdicts.numbers import means
from ft_pipeline.gate.wording import count, percent
from ft_pipeline.store.artifacts import Artifact

WORSE = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What is known of how much of its exam an adapter has seen."""

    leak: Leak
    in_other_words: Mapping[str, Any] = field(default_factory=dict)
    """Facts of gate/reworded.py, where no training data is known."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the holdout's metric."""


def seen_before(
    asking: Asking, pairs: Sequence[Pair] | str | None, *, parents: Mapping[str, Artifact], section: Mapping[str, Any]
) -> Seen | None:
    """Compares the holdout with everything that the adapter was trained on. None where the holdout has no answers to judge."""
    if not pairs or isinstance(pairs, str):
        return None
    datasets = datasets_behind(asking.store, parents["adapter"].ref)
    tasks, _ = read_tasks(parents["curated"], metric_of(section["metric"], section["parameters"]).usable)
    leak = leak_of(tasks, datasets)
    if datasets:
        return Seen(leak=leak, parameters=section["parameters"])
    return Seen(
        leak=leak, in_other_words=gain_in_other_words(asking, pairs, section=section, curated=parents["curated"])
    )


def judged_on_unseen(
    report: EvalReport, seen: Seen | None, pairs: Sequence[Pair] | str | None, *, policy: Policy
) -> EvalReport:
    """The report, its holdout judged on the rows that no training row holds, and the verdict over all gates anew."""
    if seen is None or pairs is None or isinstance(pairs, str):
        return report
    gates = [
        _judged(g, seen, pairs, policy=policy) if g.kind == "holdout" and g.rows else g for g in report.gates
    ]  # fmt: skip
    return _over(gates, report.noise, policy, name=report.policy)


def _over(gates: Sequence[GateResult], noise: Noise | None, policy: Policy, *, name: str) -> EvalReport:
    return verdicts.with_noise(verdicts.overall(gates, policy, name=name), noise, policy)


def _judged(gate: GateResult, seen: Seen, pairs: Sequence[Pair], *, policy: Policy) -> GateResult:
    leak = seen.leak
    told: dict[str, Any] = dict(seen.in_other_words)
    if leak.num_datasets:
        told |= {"leaked_rows": 0, "datasets_compared": leak.num_datasets}
    gone = [p for p in pairs if p.id in leak.questions]
    if not gone:
        return _warned(replace(gate, facts={**gate.facts, **told}))
    base, adapter = means(gone)
    told |= {
        "leaked_rows": len(gone), "leaked_exactly": sum(leak.questions[p.id] for p in gone), "leaked_base": st.rounded(base),
        "leaked_adapter": st.rounded(adapter), "leaked_from": [asdict(source) for source in leak.sources],
    }  # fmt: skip
    left = [p for p in pairs if p.id not in leak.questions]
    said = f"{len(gone):,} of its {count(len(pairs), 'row')} stand in data that the adapter was trained on"
    if not left:
        return _nothing_left(replace(gate, facts={**gate.facts, **told}), said)
    return _on_the_rest(gate, left, (said, told, seen.parameters), policy=policy)


def _nothing_left(gate: GateResult, said: str) -> GateResult:
    verdict = gate.verdict if gate.verdict is Verdict.FAIL else Verdict.INCONCLUSIVE
    reason = f"{said}: what it scores there is memory, and no row is left that could show a gain"
    return replace(gate, verdict=verdict, reason=reason)


def _on_the_rest(
    gate: GateResult, left: Sequence[Pair], told: tuple[str, dict[str, Any], Mapping[str, Any]], *, policy: Policy
) -> GateResult:
    """The rule on the other rows; where all rows together fare worse, theirs."""
    said, facts, parameters = told
    skipped = gate.facts["rows_without_reference"]
    rest = verdicts.holdout(left, policy, metric=gate.facts["metric"], parameters=parameters, skipped=skipped)
    facts |= {
        "clean_rows": len(left), "clean_base": rest.base, "clean_adapter": rest.adapter, "clean_difference": rest.difference,
        "clean_verdict": str(rest.verdict),
    }  # fmt: skip
    if WORSE.index(gate.verdict) < WORSE.index(rest.verdict):
        moved = f"without them it went from {percent(rest.base or 0)} to {percent(rest.adapter or 0)}"
        return replace(gate, facts={**gate.facts, **facts}, reason=f"{gate.reason}; {said}: {moved}")
    return replace(rest, facts={**rest.facts, **facts}, reason=f"{said}, and are left out. The others: {rest.reason}")


def _warned(gate: GateResult) -> GateResult:
    """A person reads it first; the rule does not rest on it."""
    if not gate.facts.get("reworded_flagged"):
        return gate
    gap = percent(gate.facts["reworded_gap"])
    return replace(
        gate,
        reason=f"{gate.reason}. Warning: {gap} of the gain is lost when the same questions open with other words, and no training data of "
        "these weights is known: they may have been trained on this holdout",
    )
