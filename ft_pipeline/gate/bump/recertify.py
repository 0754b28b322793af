"""Examines an adapter on a base that it was not trained on, against itself on the old one, and publishes a `recertification`.

The artifact has every file of an `eval_report` (its gates are the new report's and the contrasts), and recertification.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.errors import FtError, IntegrityError
from ft_pipeline.gate.artifact import (
    RECERTIFICATION,
    RECERTIFIED_KIND,
    EvalReport,
    GateResult,
    Verdict,
    read_report,
)
from ft_pipeline.gate.bump.contrasts import Answers, drift, read_answers, retain, retain_safety
from ft_pipeline.gate.bump.preflight import Preflight, preflight
from ft_pipeline.gate.bump.structure import needs_of, structure_of
from ft_pipeline.gate.bump.verdict import Decision, before_anything, decide
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.report import write_report
from ft_pipeline.gate.samples import Pair
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Ref, Spec

Evaluate = Callable[[Mapping[str, Ref]], Artifact]
"""Parents of a report (adapter, base, curated, suites) -> the report, found or computed."""
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Case:
    """An adapter, the base that it was trained on, and the base that is there now."""

    parents: Mapping[str, Ref]
    """Of the report on the new base: adapter, base, curated and the suites."""
    old_base: Ref
    config: Mapping[str, Any]
    """Of a report: the policy and what is measured."""
    policy: Policy

    @property
    def old_parents(self) -> dict[str, Ref]:
        """Of the report on the old base."""
        return {**self.parents, "base": self.old_base}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was decided, and on what."""

    decision: Decision
    preflight: Preflight
    gates: tuple[GateResult, ...]
    reports: Mapping[str, Ref] = field(default_factory=dict)
    """`report` on the new base, `old_report` on the old one."""
    evidence: Mapping[str, list[Pair]] = field(default_factory=dict)
    drift: Mapping[str, Any] = field(default_factory=dict)


def trained_on(store: Store, adapter: Ref) -> Ref | None:
    """The base that an adapter was trained on, as its manifest says."""
    return store.recorded(adapter).parents.get("base")


def recertify(case: Case, store: Store, *, evaluate: Evaluate, stored: Evaluate | None = None) -> Artifact:
    """The `recertification` of an adapter on the new base.

    Computed only when preflight leaves it open. `stored` finds an earlier report on the old base that exact inputs no longer name
    (made by older gate code); without one `evaluate` makes it.
    """
    look = preflight(
        structure_of(store, case.old_base), structure_of(store, case.parents["base"]), needs_of(store, case.parents["adapter"])
    )  # fmt: skip
    found = _findings(case, look, evaluate=evaluate, stored=stored or evaluate)
    spec = Spec(
        kind=RECERTIFIED_KIND, config=dict(case.config), code=code_digest(*sorted(HERE.glob("*.py"))),
        parents={**case.parents, "old_base": case.old_base, **found.reports},
    )  # fmt: skip
    return store.find(spec) or _publish(store, spec, found)


def _findings(case: Case, look: Preflight, *, evaluate: Evaluate, stored: Evaluate) -> Findings:
    if look.outcome == "INCOMPATIBLE":
        decision = before_anything(look, None)
        assert decision is not None
        return Findings(decision=decision, preflight=look, gates=(_preflight_gate(look),))
    old = stored(case.old_parents)
    if decision := before_anything(look, read_report(old).verdict):
        gates = (_preflight_gate(look), *read_report(old).gates)
        return Findings(
            decision=decision, preflight=look, gates=gates, reports={"old_report": old.ref}, evidence=read_answers(old)
        )
    new = evaluate(case.parents)
    return _measured(case, look, (old, new))


def _measured(case: Case, look: Preflight, reports: tuple[Artifact, Artifact]) -> Findings:
    old, new = (read_answers(report) for report in reports)
    gates, evidence = list(read_report(reports[1]).gates), {**new}
    for result, pairs in (retain(old, new, case.policy), retain_safety(old, new, case.policy)):
        if result is not None:
            gates.append(result)
            evidence[result.name] = pairs
    return Findings(
        decision=decide(gates, case.policy), preflight=look, gates=tuple(gates), evidence=evidence,
        reports={"old_report": reports[0].ref, "report": reports[1].ref}, drift=_drift(old, new),
    )  # fmt: skip


def _drift(old: Answers, new: Answers) -> Mapping[str, Any]:
    try:
        return drift(old, new)
    except FtError as error:
        # context only: the contrasts say the same as an ERROR of theirs
        return {"error": error.what}


def _preflight_gate(look: Preflight) -> GateResult:
    return GateResult(
        name="preflight", kind="preflight", verdict=Verdict.FAIL if look.outcome == "INCOMPATIBLE" else Verdict.PASS,
        rule="names and shapes of the layers, vocabulary, added tokens and template are the same", reason="; ".join(look.reasons),
    )  # fmt: skip


def _publish(store: Store, spec: Spec, found: Findings) -> Artifact:
    decision = found.decision
    report = EvalReport(
        verdict=decision.report_verdict, policy=spec.config["policy_name"],
        reason=f"{decision.verdict} on the new base: {decision.reason}", gates=found.gates,
    )  # fmt: skip
    with store.publish(spec) as draft:
        write_report(draft, report, found.evidence)
        body = {
            "verdict": decision.verdict, "reason": decision.reason, "action": decision.action, "drift": found.drift,
            "preflight": {"outcome": found.preflight.outcome, "reasons": found.preflight.reasons, "changed": found.preflight.changed},
        }  # fmt: skip
        (draft.folder / RECERTIFICATION).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if draft.artifact is None:
        raise FtError("the recertification was not published")
    return draft.artifact


def read_recertification(artifact: Artifact) -> dict[str, Any]:
    """The content of recertification.json: verdict, reason, action, drift, preflight. Raises IntegrityError."""
    try:
        return json.loads(artifact.file(RECERTIFICATION).read_bytes())
    except ValueError as error:
        raise IntegrityError(f"{artifact.folder / RECERTIFICATION} is not JSON: {error}") from None
