"""What was not measured, and the one verdict over all gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ft_pipeline.gate.artifact import EvalReport, GateResult, Noise, Verdict
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.wording import failed_by, percent


def broken(name: str, kind: Any, reason: str) -> GateResult:
    """A gate that could not be measured."""
    return GateResult(name=name, kind=kind, verdict=Verdict.ERROR, rule="every score is a finite number", reason=reason)


def skipped(kind: Any, policy: Policy, reason: str) -> GateResult:
    """A gate without evidence."""
    must = "the policy requires it" if kind in policy.required else "the policy does not ask for it"
    return GateResult(name=kind, kind=kind, verdict=Verdict.SKIPPED, rule=must, reason=reason)


def overall(gates: Sequence[GateResult], policy: Policy, *, name: str) -> EvalReport:
    """PASS when something was measured, everything measured passed, and everything required was measured."""
    missing = [g for g in gates if g.verdict is Verdict.SKIPPED and g.kind in policy.required]
    measured = [g for g in gates if g.verdict is not Verdict.SKIPPED]
    for verdict in (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE):
        if worst := [g for g in gates if g.verdict is verdict]:
            return EvalReport(verdict=verdict, policy=name, reason=failed_by(worst), gates=tuple(gates))
    if missing or not measured:
        reason = f"policy {name} requires {' and '.join(g.kind for g in missing)}, and that was not measured"
        return EvalReport(
            verdict=Verdict.INCONCLUSIVE, policy=name, gates=tuple(gates),
            reason=reason if missing else "nothing was measured: a verdict needs evidence",
        )  # fmt: skip
    reason = f"all {len(measured)} measured gates passed" if len(measured) > 1 else f"{measured[0].name} passed"
    return EvalReport(verdict=Verdict.PASS, policy=name, reason=reason, gates=tuple(gates))


def with_noise(report: EvalReport, noise: Noise | None, policy: Policy) -> EvalReport:
    """The report with the noise of its engine; an ERROR where the engine differs from itself by more than the policy allows."""
    if noise is None or noise.share <= policy.noise_limit:
        return replace(report, noise=noise)
    reason = (
        f"the base differed from itself on {noise.differing} of {noise.rows} questions of {noise.suite} when it was asked again in other "
        f"batches; the policy allows {percent(policy.noise_limit)}: what is measured here is the engine"
    )
    return replace(report, noise=noise, verdict=Verdict.ERROR, reason=reason)
