"""The words of the failed-gate page: a table of gates, the sentence that says what stopped, and the next steps. Markdown."""

from __future__ import annotations

from ft_pipeline.gate.artifact import EvalReport, GateResult, Verdict
from ft_pipeline.gate.wording import cure, measured

OPEN_QUESTION = "Nothing was registered. The adapter and this report stay in the store."


def check_description(report: EvalReport) -> str:
    """What the check says in a list of checks: the gate that decided, why, and what helps."""
    decisive = _decisive(report)
    if report.passed or not decisive:
        return f"{report.verdict}: {report.reason}."
    return f"Stopped by {decisive[0].name} ({report.verdict}): {decisive[0].reason}. What helps: {cure(decisive[0])}."


def gate_table(report: EvalReport) -> list[dict[str, str]]:
    """Every gate as one row: numbers in percent and points, the policy's line, the reason."""
    return [_table_row(gate) for gate in report.gates]


def next_steps(report: EvalReport) -> str:
    """What a person can do now, as a Markdown list."""
    found = [f"- **{name}**: {text}" if name else f"- {text}" for name, text in steps(report)]
    if report.passed:
        return "\n".join(found)
    found.append("- Open `report.html` (path below): it shows the questions that cost most, with both answers.")
    return "\n".join([*found, f"- {OPEN_QUESTION}"])


def steps(report: EvalReport) -> list[tuple[str, str]]:
    """What a person can do now: name of a gate, or nothing, and the sentence."""
    if report.passed:
        return [("", "Promote it: `ft-pipeline promote MODEL --to staging`.")]
    decisive = _decisive(report)
    others = [g for g in report.gates if cure(g) and g not in decisive]
    return [(g.name, f"{cure(g)}.") for g in [*decisive, *others]] or [
        ("", "Name the missing suites in the recipe's `gate` section, or choose another policy.")
    ]


def gate_facts(report: EvalReport) -> dict[str, float]:
    """The numbers that Dagster plots over time: `holdout adapter`, `holdout difference`, ..."""
    fields = ("base", "adapter", "difference", "low", "high")
    return {
        f"{g.name} {name}": value for g in report.gates for name in fields if (value := getattr(g, name)) is not None
    }


def _decisive(report: EvalReport) -> list[GateResult]:
    return [g for g in report.gates if g.verdict not in (Verdict.PASS, Verdict.SKIPPED) and g.verdict is report.verdict]


def _table_row(gate: GateResult) -> dict[str, str]:
    signed = gate.kind != "safety"
    bounds = f"{measured(gate.low, signed=signed)} .. {measured(gate.high, signed=signed)}" if gate.rows else "-"
    return {
        "gate": gate.name,
        "verdict": str(gate.verdict),
        "base": measured(gate.base),
        "adapter": measured(gate.adapter),
        "difference": measured(gate.difference, signed=True),
        "bounds": bounds,
        "policy's line": measured(gate.threshold, signed=signed),
        "rows": f"{gate.rows:,}" if gate.rows else "-",
        "why": gate.reason,
    }
