"""The verdict table of a base change (docs/base-changes.md): what preflight and contrasts mean together, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.bump.preflight import Preflight
from ft_pipeline.gate.policy import Policy


class Recertification(StrEnum):
    """What becomes of an adapter whose base moved."""

    RECERTIFIED = "RECERTIFIED"
    """It is as good on the new base: a new version on it, with the same bytes."""
    CARRY_FORWARD = "CARRY_FORWARD"
    """Nothing that it could notice changed: the old report holds."""
    DEGRADED = "DEGRADED"
    """It still gains over the new base, and lost against itself on the old one."""
    OBSOLETE = "OBSOLETE"
    """The new base has caught up: the adapter gains nothing any more."""
    RETRAIN = "RETRAIN"
    """It interferes with the new base, or neither gains nor keeps."""
    BLOCKED = "BLOCKED"
    """It is not safe on the new base."""
    REVIEW = "REVIEW"
    """The samples decide nothing: a person does."""
    INCOMPATIBLE = "INCOMPATIBLE"
    """It cannot be put on the new base at all."""


CERTIFIES = (Recertification.RECERTIFIED, Recertification.CARRY_FORWARD)
RETRAINS = (Recertification.DEGRADED, Recertification.RETRAIN, Recertification.INCOMPATIBLE, Recertification.BLOCKED)
"""Verdicts that a new training on the new base may answer."""
ACTIONS = {
    Recertification.RECERTIFIED: "registered on the new base with the same adapter bytes; it follows its policy's stages",
    Recertification.CARRY_FORWARD: "the old report is linked; nothing was computed",
    Recertification.DEGRADED: "go on serving the old base; train again on the new one",
    Recertification.OBSOLETE: "retire it and answer with the base, or go on serving the old base",
    Recertification.RETRAIN: "go on serving the old base; train again on the new one",
    Recertification.BLOCKED: "never serve it on the new base; go on serving the old base and train again with refusals",
    Recertification.REVIEW: "a person reads the report; more rows in the suite would decide it",
    Recertification.INCOMPATIBLE: "go on serving the old base; train again on the new one",
}
"""What to do."""
SAFETY, GAIN, RETAIN = ("safety", "over_refusal", "retain_safety"), ("holdout",), ("retain",)
"""Kinds of gates by contrast; every other kind is a regression."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One verdict and the sentence that says why."""

    verdict: Recertification
    reason: str

    @property
    def action(self) -> str:
        """What to do."""
        return ACTIONS[self.verdict]

    @property
    def report_verdict(self) -> Verdict:
        """As a gate says it: PASS lets it onto the new base."""
        if self.verdict in CERTIFIES:
            return Verdict.PASS
        return Verdict.INCONCLUSIVE if self.verdict is Recertification.REVIEW else Verdict.FAIL


def before_anything(preflight: Preflight, old: Verdict | None) -> Decision | None:
    """The decision that needs no samples, None when the adapter has to be measured. `old`: verdict of its report on the old base."""
    if preflight.outcome == "INCOMPATIBLE":
        return Decision(verdict=Recertification.INCOMPATIBLE, reason="; ".join(preflight.reasons))
    if preflight.outcome == "CARRY_FORWARD" and old is Verdict.PASS:
        return Decision(verdict=Recertification.CARRY_FORWARD, reason="; ".join(preflight.reasons))
    return None


def decide(gates: Sequence[GateResult], policy: Policy) -> Decision:
    """The row of the table that the gates of the new report and the contrasts are in."""
    safety, gain, retain = (_over(gates, kinds, policy) for kinds in (SAFETY, GAIN, RETAIN))
    others = tuple({g.kind for g in gates} - {*SAFETY, *GAIN, *RETAIN}) or ("benchmark",)
    regress = _over(gates, others, policy)
    if safety is Verdict.FAIL:
        return _decision(Recertification.BLOCKED, gates, SAFETY)
    if safety is Verdict.PASS and regress is Verdict.FAIL:
        return _decision(Recertification.RETRAIN, gates, others)
    if Verdict.INCONCLUSIVE in (safety, regress, gain, retain):
        return _decision(Recertification.REVIEW, gates, ())
    table = {
        (Verdict.PASS, Verdict.PASS): Recertification.RECERTIFIED,
        (Verdict.PASS, Verdict.FAIL): Recertification.DEGRADED,
        (Verdict.FAIL, Verdict.PASS): Recertification.OBSOLETE,
        (Verdict.FAIL, Verdict.FAIL): Recertification.RETRAIN,
    }
    return _decision(table[gain, retain], gates, (*GAIN, *RETAIN))


def _over(gates: Sequence[GateResult], kinds: Sequence[str], policy: Policy) -> Verdict:
    """One verdict over the gates of some kinds. What was not measured and must be is INCONCLUSIVE; an ERROR too."""
    found = [g for g in gates if g.kind in kinds]
    said = {g.verdict for g in found}
    lacking = [g for g in found if g.verdict is Verdict.SKIPPED and g.kind in policy.required]
    if Verdict.FAIL in said:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE if said & {Verdict.INCONCLUSIVE, Verdict.ERROR} or lacking else Verdict.PASS


def _decision(verdict: Recertification, gates: Sequence[GateResult], kinds: Sequence[str]) -> Decision:
    """The reason is the first gate of these kinds that stands in the way, of any kind when none is named."""
    open_gates = [g for g in gates if g.verdict not in (Verdict.PASS, Verdict.SKIPPED)]
    named = [g for g in open_gates if g.kind in kinds or not kinds]
    if not named:
        return Decision(verdict=verdict, reason="every contrast holds on the new base")
    failing = sorted(named, key=lambda g: g.verdict is not Verdict.FAIL or not kinds)
    return Decision(verdict=verdict, reason="; ".join(f"{g.name}: {g.reason}" for g in failing[:2]))
