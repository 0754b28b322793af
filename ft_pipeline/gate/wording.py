"""How numbers are said to a person: points, percent, bounds, and the sentence that says which gate decided."""

from __future__ import annotations

from collections.abc import Sequence

from ft_pipeline.gate.artifact import GateResult, Verdict
from ft_pipeline.gate.policy import Policy

CURES = {
    "benchmark": "the adapter forgot: fewer epochs, a lower learning rate, a lower rank, or a share of general text in the data",
    "holdout": "the task was not learnt: more or cleaner rows, more epochs, or a metric that fits the answers",
    "safety": "mix refusals of harmful requests into the data, or remove the rows that answer them",
    "over_refusal": "the data refuses too much: add harmless look-alikes with answers",
    "judge": "the judge prefers the base's answers: read the lost comparisons; more or better rows, or fewer epochs",
    "preflight": "it cannot be moved as it is: train the recipe again on the new base",
    "retain": "the move cost it the task: go on serving the old base, and train again on the new one",
    "fidelity": "the format costs too much: more bits (`ft-pipeline export MODEL --advise`), GPTQ instead of rounding, or smaller groups",
    "retain_safety": "on the new base it refuses less: go on serving the old base, and train again with refusals in the data",
}
"""Kind of gate -> what helps when it fails."""
CURE_ERROR = "nothing could be measured: read the reason, mend the suite or the model, and run the recipe again"
CURE_UNSURE = "add rows to that suite, or have a person review the report; a wider margin is a decision of the policy"
CURE_LEAKED = (
    "draw a holdout that no training set behind it holds, or train again without the leaked rows; "
    "`curate.contamination.holdout: remove` keeps them out of its own dataset"
)


def points(share: float) -> str:
    """A difference of shares: `4.1 points`, `0.05 points` when small."""
    value = abs(share) * 100
    text = f"{value:.1f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
    return f"{'-' if share < 0 else ''}{text.removesuffix('.0')} {'point' if text in ('1', '1.0') else 'points'}"


def percent(share: float) -> str:
    """A share: `95%`, `63.7%`."""
    return f"{share * 100:.1f}".removesuffix(".0") + "%"


def count(number: int, noun: str) -> str:
    """`1 row`, `1,500 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def bound(policy: Policy) -> str:
    """`95% bound`."""
    return f"{percent(policy.confidence)} bound"


def failed_by(gates: Sequence[GateResult]) -> str:
    """The sentence that names the gates which decided, the first one with its reason."""
    first, rest = gates[0], [g.name for g in gates[1:]]
    also = f" (also: {', '.join(rest)})" if rest else ""
    verb = {Verdict.FAIL: "failed", Verdict.ERROR: "could not be measured"}.get(first.verdict, "is inconclusive")
    return f"{first.name} {verb}{also}: {first.reason}"


def cure(gate: GateResult) -> str:
    """What to do about a gate that did not pass; empty for one that did."""
    if gate.verdict in (Verdict.PASS, Verdict.SKIPPED):
        return ""
    if gate.verdict is Verdict.ERROR:
        return CURE_ERROR
    if gate.facts.get("leaked_rows"):
        return CURE_LEAKED
    return CURES[gate.kind] if gate.verdict is Verdict.FAIL else CURE_UNSURE


def measured(value: float | None, *, signed: bool = False) -> str:
    """A share in a table cell: `63.7%`, `+4.1`, or a dash."""
    if value is None:
        return "-"
    return f"{value * 100:+.1f}" if signed else percent(value)
