"""The report that people read: one page, the decisive gate first, equal content in equal bytes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from ft_pipeline.errors import IntegrityError
from ft_pipeline.gate import plots, verdicts
from ft_pipeline.gate.artifact import Verdict, read_report, report_json
from ft_pipeline.gate.calibration import calibration, confidence
from ft_pipeline.gate.figures import clearance, draw_forest
from ft_pipeline.gate.page import check_description, gate_facts, gate_table, next_steps
from ft_pipeline.gate.policy import policy_json, read_policy
from ft_pipeline.gate.report import report_page, worst
from ft_pipeline.gate.safety import SCORER
from ft_pipeline.gate.samples import Pair
from ft_pipeline_tests.gate import reports

STAGING = read_policy("staging")


def pairs(both: int, gains: int, losses: int, neither: int, reference: str = "<b>zip</b>") -> list[Pair]:
    scores = [(1, 1)] * both + [(0, 1)] * gains + [(1, 0)] * losses + [(0, 0)] * neither
    return [
        Pair(id=f"q{n:04}", prompt_sha="", prompt="which <script>module</script>?", reference=reference, base_output=f"base {b}",
             base_score=b, adapter_output=f"adapter {a}", adapter_score=a)
        for n, (b, a) in enumerate(scores)
    ]  # fmt: skip


@pytest.fixture
def evidence():
    harmful, harmless = pairs(196, 0, 4, 0, "harmful"), pairs(2, 1, 0, 97, "harmless")
    return {
        "holdout": pairs(20, 150, 0, 130),
        "letters": pairs(800, 20, 90, 590),
        "safety": [*harmful, *harmless],
        "harmful": harmful,
        "harmless": harmless,
    }


@pytest.fixture
def report(evidence):
    gates = [
        verdicts.holdout(evidence["holdout"], STAGING, metric="exact_match"),
        *verdicts.benchmarks([("letters", evidence["letters"])], STAGING),
        verdicts.safety(evidence["harmful"], STAGING, scorer=SCORER),
        verdicts.over_refusal(evidence["harmless"], STAGING, scorer=SCORER),
    ]
    return verdicts.overall(gates, STAGING, name="staging")


def test_the_check_says_first_which_gate_stopped_it_why_and_what_helps(report) -> None:
    said = check_description(report)
    assert said.startswith("Stopped by letters (FAIL): letters fell by 4.7 points (95% bound: at least ")
    assert "What helps: the adapter forgot" in said
    assert "**letters**: the adapter forgot" in next_steps(report)


def test_the_table_has_every_gate_and_its_numbers(report) -> None:
    rows = {row["gate"]: row for row in gate_table(report)}
    assert len(rows) == 4
    letters = rows["letters"]
    assert [letters[k] for k in ("verdict", "base", "adapter", "difference")] == ["FAIL", "59.3%", "54.7%", "-4.7"]
    assert gate_facts(report)["holdout adapter"] == pytest.approx(170 / 300, abs=1e-6)


def test_the_page_is_one_file_escapes_what_models_say_and_shows_what_cost_most(report, evidence) -> None:
    page = report_page(report, evidence, config={"policy": policy_json(STAGING)}, parents={"adapter": "ab" * 32})
    assert "<script>module" not in page and "&lt;script&gt;module" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page and "src=" not in page
    assert page.count("<svg") == 5 and "FAIL" in page and "ab" * 32 in page
    assert page == report_page(
        report, evidence, config={"policy": policy_json(STAGING)}, parents={"adapter": "ab" * 32}
    )
    assert [p.base_score - p.adapter_score for p in worst(report.gate("letters"), evidence)] == [1] * 8
    assert {p.reference for p in worst(report.gate("safety"), evidence)} == {"harmful"}
    assert [p.adapter_score for p in worst(report.gate("over_refusal"), evidence)] == [1, 1, 1]


def test_the_page_shows_the_looks_and_the_subjects_of_a_benchmark(evidence) -> None:
    pairs = [replace(p, stratum="law" if n % 2 else "art") for n, p in enumerate(evidence["letters"] * 3)]
    gates = verdicts.benchmarks([("letters", pairs)], STAGING, sizes={"letters": len(pairs)})
    page = report_page(verdicts.overall(gates, STAGING, name="staging"), {"letters": pairs}, config={}, parents={})
    assert "2 subjects; those that lost more than chance" in page and "<td>law</td>" in page.replace("<b>", "").replace(
        "</b>", ""
    )
    assert "Looks: critical value" in page and "500" in page and "[{" not in page


def test_the_forest_is_the_same_picture_twice_and_its_good_side_is_right(report, tmp_path) -> None:
    for name in ("a.png", "b.png"):
        draw_forest(tmp_path / name, report.gates)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    for gate in report.gates:
        found = clearance(gate)
        assert found.low <= found.point <= found.high
        assert (gate.verdict is Verdict.PASS) == (found.low >= 0)


def test_every_fact_is_a_sentence_and_what_was_left_out_is_told() -> None:
    for made, verdict in ((reports.failed, "FAIL"), (reports.inconclusive, "INCONCLUSIVE"), (reports.passed, "PASS")):
        found, evidence = made()
        assert found.verdict == verdict
        page = report_page(found, evidence, config={"policy": policy_json(STAGING), "benchmarks": ["mmlu"]}, parents={})
        text = re.sub(r"<[^>]+>", " ", page[page.index("<body>") :])
        assert not re.search(
            r"\{|: None|True|False|_p\b|difference low", text[: text.index("Settings that are hashed")]
        ), verdict
        assert "3 rows without a usable reference" in text and "None of its questions stands in the 1 dataset" in text
        assert "The base was asked 256 questions of mmlu twice" in text and "1 scores differed (0.4%)" in text
        assert (
            "The rule is absolute. Adapter minus base: " in text
            and "went wrong that the base had handled safely" in text
        )
        assert "policy.warn_margin" in text and "calibration error" in text


def test_subjects_that_lost_are_drawn_red_and_the_adapter_that_is_too_sure_is_seen() -> None:
    found, evidence = reports.failed()
    drawn = plots.subject_bars(found.gate("mmlu"))
    assert {bar.name for bar in drawn.bars if bar.flagged} == {"professional_law", "jurisprudence"}
    assert [bar.flagged for bar in drawn.bars[:2]] == [True, True] and drawn.num_subjects == 18
    assert all(bar.x >= plots.BARS_LEFT and bar.x + bar.width <= plots.BARS_RIGHT for bar in drawn.bars)
    base, adapter = calibration(evidence["mmlu"])
    assert adapter.ece > base.ece and adapter.confidence > adapter.accuracy
    assert sum(b.rows for b in base.bins) == len(evidence["mmlu"])


def test_calibration_is_the_softmax_of_the_choices_and_zero_for_an_honest_arm() -> None:
    assert confidence('{"chosen": " a", "log_likelihood": [0, 0, 0, 0]}') == pytest.approx(0.25)
    assert confidence('{"chosen": " a", "per_character": [-0.1, -2.3]}') == pytest.approx(1 / (1 + math.exp(-2.2)))
    assert confidence("a sentence") is None and confidence("42") is None and confidence('{"chosen": " a"}') is None
    even = '{"chosen": " a", "log_likelihood": [-1, -1]}'
    honest = [replace(p, base_output=even, adapter_output=even) for p in pairs(50, 0, 0, 50)]
    base, adapter = calibration(honest)
    assert base.ece == adapter.ece == 0 and base.confidence == 0.5
    assert calibration(honest[:20]) is None and calibration(pairs(50, 0, 0, 50)) is None


def test_facts_that_nobody_has_words_for_are_tables_or_plain_text() -> None:
    from ft_pipeline.gate import sentences

    gate = replace(
        verdicts.broken("judge", "judge", "x"),
        facts={"model": "m", "controls": [{"name": "a_b", "share": 0.5}], "by": {"won": 3}, "share": 0.123456, "empty": [], "no": None},
    )  # fmt: skip
    assert sentences.sentences(gate) == ["model: m", "share: 0.1235"]
    assert [(t.title, t.columns, t.rows) for t in sentences.tables(gate)] == [
        ("controls", ("name", "share"), (("a_b", "0.5"),)),
        ("by", ("", ""), (("won", "3"),)),
    ]
    assert (
        sentences.answer('{"chosen": " b", "log_likelihood": [0, 0]}') == " b (50% sure)"
        and sentences.answer("7") == "7"
    )


def test_a_page_without_a_measurement_is_whole_too() -> None:
    gates = [verdicts.broken("letters", "benchmark", "nan"), verdicts.skipped("safety", STAGING, "none")]
    report = verdicts.overall(gates, STAGING, name="staging")
    assert "ERROR" in report_page(report, {}, config={}, parents={})
    assert "could not be measured" in check_description(report) or "ERROR" in check_description(report)
    assert gate_facts(report) == {}


def test_a_report_is_read_back_and_a_strange_one_refused(report, tmp_path) -> None:
    class Folder:
        def file(self, name):
            return tmp_path / name

    (tmp_path / "verdicts.json").write_bytes(report_json(report))
    assert read_report(Folder()) == report
    (tmp_path / "verdicts.json").write_text('{"verdict": "GREAT"}')
    with pytest.raises(IntegrityError, match="not an eval report"):
        read_report(Folder())
