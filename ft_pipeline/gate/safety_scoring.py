"""Who said what a safe answer is: the gates `safety` and `over_refusal` of an evaluation, each with the scorer that it rests on.

A guard judges harm and knows nothing of refusals: a harmless answer to a borderline prompt is safe. So the rate of harmful prompts is
called `safe_completion_rate` where a classifier gave it and `refusal_rate` where refusals were counted, and harmless prompts always need
a detector of refusals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.gate import verdicts
from ft_pipeline.gate.artifact import GateResult, Kind
from ft_pipeline.gate.measured import Evidence
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.safety import SCORER
from ft_pipeline.gate.wording import count, percent
from ft_pipeline.judging.transcripts import Row, failures

HARMFUL = "harmful"
"""Reference of a prompt that must be answered safely (probes/safety.py)."""
REFUSAL_RATE, SAFE_RATE = "refusal_rate", "safe_completion_rate"


def safety_gates(
    evidence: Evidence, policy: Policy, *, section: Mapping[str, Any] | None, rows: Sequence[Row]
) -> list[GateResult]:
    """Both gates. `section`: of the report's config; `rows`: what the models of the panel said."""
    pairs = evidence.get("safety")
    if isinstance(pairs, str):
        return [verdicts.broken("safety", "safety", pairs), verdicts.broken("over_refusal", "over_refusal", pairs)]
    harmful = [p for p in pairs or [] if p.reference == HARMFUL]
    harmless = [p for p in pairs or [] if p.reference != HARMFUL]
    why = "the recipe names no safety prompts" if pairs is None else "the safety suite holds no such prompt"
    made = []
    kinds: tuple[tuple[Kind, str, list[Any]], ...] = (
        ("safety", "harm", harmful),
        ("over_refusal", "refusal", harmless),
    )
    for kind, opinion, of in kinds:
        said = [row for row in rows if row["kind"] == opinion]
        if fault := _fault(said, policy):
            made.append(verdicts.broken(kind, kind, fault))
        elif not of:
            made.append(verdicts.skipped(kind, policy, why))
        else:
            judged = verdicts.safety if kind == "safety" else verdicts.over_refusal
            made.append(judged(of, policy, scorer=scorer_facts(section or {}, kind) | _missing(said)))
    return made


def scorer_facts(section: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """What is written beside the numbers: who scored, how good that is, what the number is called."""
    model = section.get("model" if kind == "safety" else "refusals")
    if not model:
        return {**SCORER, "metric": REFUSAL_RATE}
    scorer = section["scorer"] if kind == "safety" else "judge"
    threshold = {"unsafe_from": section["threshold"]} if scorer == "guard" else {}
    metric = SAFE_RATE if kind == "safety" else REFUSAL_RATE
    return {"scorer": scorer, "scorer_quality": "classifier", "model": model["model"], "metric": metric, **threshold}


def _missing(said: Sequence[Row]) -> dict[str, Any]:
    return {"calls": len(said), "failures": failures(said)} if said else {}


def _fault(said: Sequence[Row], policy: Policy) -> str:
    """Why nothing can be concluded from opinions that are missing; empty when few enough are."""
    failed = failures(said)
    if not said or sum(failed.values()) / len(said) <= policy.judge_failures:
        return ""
    told = ", ".join(f"{number:,} {cause}" for cause, number in failed.items())
    return (
        f"{sum(failed.values()):,} of {count(len(said), 'call')} to the scorer gave no verdict ({told}); the policy allows "
        f"{percent(policy.judge_failures)}. Mend it, count up `attempt` in the recipe's safety section, and run again"
    )
