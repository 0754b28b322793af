"""What a gate counted besides its verdict, as sentences and small tables for a person: no raw value reaches the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.gate.artifact import GateResult, Noise
from ft_pipeline.gate.calibration import confidence
from ft_pipeline.gate.judge_sentences import JUDGE_SAID
from ft_pipeline.gate.wording import count, measured, percent

Facts = Mapping[str, Any]
DRAWN = frozenset({"looks", "subjects", "subjects_flagged", "critical_value", "rows_planned", "leaked_from"})
"""Facts that have a table of their own on the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A fact of several rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sentences(gate: GateResult) -> list[str]:
    """Every fact of the gate that is a sentence; one that nobody has words for is said as `name: value`."""
    facts = {k: v for k, v in gate.facts.items() if k not in DRAWN and v is not None}
    said: list[str] = []
    for keys, words in SAID:
        if keys[0] in facts:
            text = words(facts, gate)
            said += [text] if text else []
            facts = {k: v for k, v in facts.items() if k not in keys}
    return said + [
        f"{_name(k)}: {_value(v)}" for k, v in facts.items() if not _is_table(v) and v not in (False, [], ())
    ]


def tables(gate: GateResult) -> list[Table]:
    """The facts that nobody drew and that hold several rows."""
    return [_table(k, v) for k, v in gate.facts.items() if k not in DRAWN and _is_table(v)]


def noise_said(noise: Noise | None) -> str:
    """What the engine differs from itself by."""
    if noise is None:
        return "The engine was not compared with itself: no question could be asked twice."
    asked = f"The base was asked {count(noise.rows, 'question')} of {noise.suite} twice, in batches of other shapes"
    if not noise.differing:
        return f"{asked}: every score was the same, so no difference here is the engine's."
    return f"{asked}: {noise.differing:,} scores differed ({percent(noise.share)}). A difference of that size is the engine's, not the adapter's."


def left_out(gates: Sequence[GateResult]) -> list[str]:
    """What no verdict here rests on: rows without a reference, what was skipped, what looks made needless."""
    found: list[str] = []
    for gate in gates:
        facts = gate.facts
        if gate.verdict == "SKIPPED":
            found.append(f"{gate.name} was not measured: {gate.reason}.")
        if rows := facts.get("rows_without_reference"):
            found.append(f"{count(rows, 'holdout row')} had no reference answer that the metric can use.")
        if (planned := facts.get("rows_planned", 0)) > gate.rows:
            found.append(
                f"{planned - gate.rows:,} of {count(planned, 'question')} of {gate.name} were not asked: a look had decided."
            )
        if leaked := facts.get("leaked_rows"):
            found.append(
                f"{count(leaked, 'holdout row')} stood in training data; the holdout is also judged without them."
            )
        if items := facts.get("contaminated_items"):
            found.append(
                f"{count(items, 'question')} of {gate.name} stood in training rows; the score without them is shown."
            )
    return found


def answer(output: str) -> str:
    """A stored answer as a person reads it: of a benchmark the choice and how sure it was."""
    try:
        said = json.loads(output)
    except ValueError:
        return output
    if not isinstance(said, dict) or "chosen" not in said:
        return output
    sure = confidence(output)
    return f"{said['chosen']}" + (f" ({percent(sure)} sure)" if sure is not None else "")


def _won(facts: Facts, gate: GateResult) -> str:
    p = facts.get("mcnemar_p")
    if gate.kind == "safety":
        return f"{count(facts['losses'], 'harmful prompt')} went wrong that the base had handled safely, {facts['gains']:,} the other way round"
    if gate.kind == "over_refusal":
        return f"The adapter refused {count(facts['gains'], 'prompt')} that the base answered, and answered {facts['losses']:,} that it refused"
    return (
        f"The adapter won {count(facts['gains'], 'question')} that the base got wrong and lost {facts['losses']:,} that it got right"
        + (f" (McNemar p = {p:g})" if p is not None else "")
    )


def _clean(facts: Facts, _: GateResult) -> str:
    held = facts["contaminated_items"]
    said = f"contaminated items {held:,}: questions that stand in rows the adapter was trained on"
    if kept := facts.get("items_kept_out_of_training"):
        said += f"; {kept:,} more were kept out of training"
    if facts.get("clean_rows"):
        moved = measured(facts.get("clean_difference"), signed=True)
        said += (
            f". Without them: {percent(facts['clean_base'])} to {percent(facts['clean_adapter'])}, {moved} points on "
            f"{count(facts['clean_rows'], 'question')}"
        )
    return said


def _leaked(facts: Facts, _: GateResult) -> str:
    held, datasets = facts["leaked_rows"], facts.get("datasets_compared", 0)
    if not held:
        return f"None of its questions stands in the {count(datasets, 'dataset')} that the adapter was trained on"
    said = f"{count(held, 'question')} stand in rows that the adapter was trained on ({facts.get('leaked_exactly', 0):,} word for word)"
    if facts.get("clean_rows"):
        said += (
            f". Without them: {percent(facts['clean_base'])} to {percent(facts['clean_adapter'])} on "
            f"{count(facts['clean_rows'], 'row')}, which alone is {facts['clean_verdict']}; on the leaked ones "
            f"{percent(facts['leaked_base'])} to {percent(facts['leaked_adapter'])}"
        )
    return said


def _reworded(facts: Facts, _: GateResult) -> str:
    gap = measured(facts["reworded_gap"], signed=True)
    said = (
        f"No training data is known, so {count(facts['reworded_rows'], 'question')} were asked again in other words: the gain over the base was "
        f"{measured(facts['reworded_gain_before'], signed=True)} points as written and {measured(facts['reworded_gain'], signed=True)} "
        f"reworded, {gap} points apart"
    )
    return (
        f"Warning: {said}. That is how an adapter looks that learned these prompts"
        if facts["reworded_flagged"]
        else said
    )


def _rows(facts: Facts, gate: GateResult) -> str:
    graded = f"The mean of single rows went from {percent(facts['row_base'])} to {percent(facts['row_adapter'])}"
    return f"{graded}; {gate.name} is scored as a whole"


def _scorer(facts: Facts, gate: GateResult) -> str:
    quality = facts.get("scorer_quality")
    what = "Safe answers" if gate.kind == "safety" and quality == "classifier" else "Refusals"
    model = f" {facts['model']}" if facts.get("model") else ""
    said = f"{what} were recognised by: {facts['scorer']}{model}"
    return (
        f"{said} (phrases only: it agrees with careful readers in 25 to 81% of cases)"
        if quality == "heuristic"
        else said
    )


def _ceiling(facts: Facts, _: GateResult) -> str:
    return "The base is too good for a relative gain: errors must shrink instead" if facts["ceiling"] else ""


SAID: tuple[tuple[tuple[str, ...], Callable[[Facts, GateResult], str]], ...] = (
    *JUDGE_SAID,
    (("metric",), lambda f, _: f"Metric: {f['metric']}"),
    (("ceiling",), _ceiling),
    (("gains", "losses", "mcnemar_p"), _won),
    (("holm_p",), lambda f, _: f"Chance of such a fall if it stayed within the margin, over all benchmarks (Holm): p = {f['holm_p']:g}"),
    (("stratified_low", "stratified_high"), lambda f, _: "Bounds with subjects weighted by their questions: "
     f"{measured(f['stratified_low'], signed=True)} .. {measured(f['stratified_high'], signed=True)} points"),
    (("row_base", "row_adapter"), _rows),
    (("bounds",), lambda f, _: f"Bounds by a {f['bounds']}"),
    (("rows_without_reference",), lambda f, _: f"{count(f['rows_without_reference'], 'row')} without a usable reference"
     if f["rows_without_reference"] else ""),
    (("safe", "unsafe"), lambda f, _: f"The adapter answered {f['safe']:,} safely and {f['unsafe']:,} not"),
    (("kind", "difference_low", "difference_high"), lambda f, _: f"The rule is {f['kind']}. Adapter minus base: "
     f"{measured(f.get('difference_low'), signed=True)} .. {measured(f.get('difference_high'), signed=True)} points"),
    (("refused", "answered"), lambda f, _: f"The adapter refused {f['refused']:,} and answered {f['answered']:,}"),
    (("scorer", "scorer_quality", "version", "model"), _scorer),
    (("leaked_rows", "leaked_exactly", "leaked_base", "leaked_adapter", "datasets_compared", "clean_verdict", "clean_rows", "clean_base",
      "clean_adapter", "clean_difference", "clean_low", "clean_high"), _leaked),
    (("contaminated_items", "items_kept_out_of_training", "clean_rows", "clean_base", "clean_adapter", "clean_difference"), _clean),
    (("reworded_gap", "reworded_rows", "reworded_gain", "reworded_gain_before", "reworded_flagged", "reworded_low"), _reworded),
)  # fmt: skip
"""Facts that belong together -> their sentence; empty where there is nothing to say."""


def _is_table(value: Any) -> bool:
    return bool(value) and (
        isinstance(value, Mapping) or (isinstance(value, list | tuple) and isinstance(value[0], Mapping))
    )


def _table(key: str, value: Any) -> Table:
    if isinstance(value, Mapping):
        rows = tuple((_name(str(k)), _value(v)) for k, v in value.items())
        return Table(title=_name(key), columns=("", ""), rows=rows)
    columns = tuple(dict.fromkeys(name for row in value for name in row))
    rows = tuple(tuple(_value(row.get(name)) for name in columns) for row in value)
    return Table(title=_name(key), columns=tuple(_name(c) for c in columns), rows=rows)


def _name(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_name(str(k))} {_value(v)}" for k, v in value.items())
    return ", ".join(_value(v) for v in value) if isinstance(value, list | tuple) else str(value)
