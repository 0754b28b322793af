"""A benchmark is also scored without the questions that stood in training rows; its verdict does not move."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ft_pipeline.curate.artifact import CONTAMINATION, item_sha256
from ft_pipeline.gate import verdicts
from ft_pipeline.gate.artifact import read_report, report_json
from ft_pipeline.gate.contaminated import with_clean_scores
from ft_pipeline.gate.page import gate_table
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.gate.report import report_page
from ft_pipeline.gate.samples import Pair
from ft_pipeline.store.manifest import Spec

STAGING = read_policy("staging")
QUESTIONS = [
    {"id": f"q{n}", "context": f"Question: what is {n} times {n}?\nAnswer:", "choices": [" one", " two"], "answer": 0} for n in range(400)
]  # fmt: skip


@pytest.fixture
def publish_files(store):
    def made(kind: str, **files: bytes):
        with store.publish(
            Spec(kind=kind, config={"name": kind, "content": str(files)}, parents={}, code="t")
        ) as draft:
            for name, body in files.items():
                (draft.folder / name.replace("__", ".")).write_bytes(body)
        return draft.artifact

    return made


@pytest.fixture
def suite(publish_files):
    return publish_files("eval_suite", suite__jsonl="".join(json.dumps(q) + "\n" for q in QUESTIONS).encode())


@pytest.fixture
def curated_with(publish_files, tmp_path):
    """A curated dataset: number of a question -> how many training rows hold it; None: curate looked for no benchmark."""

    def made(held: dict[int, int] | None):
        if held is None:
            return publish_files("curated_dataset", holdout__parquet=b"x")
        found = {f"What is {n} times {n}?": rows for n, rows in held.items()}
        path = contamination(tmp_path, found | {"of another benchmark": 1})
        return publish_files("curated_dataset", contamination__parquet=path.read_bytes())

    return made


def contamination(folder: Path, held: dict[str, int]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"item_sha256": item_sha256(asked), "rows_trained": rows} for asked, rows in held.items()]
    pq.write_table(pa.Table.from_pylist([*rows, {"item_sha256": "", "rows_trained": 3}]), folder / CONTAMINATION)
    return folder / CONTAMINATION


def pairs() -> list[Pair]:
    """The base is right on every second question; the adapter also on the first 100."""
    return [
        Pair(id=q["id"], prompt_sha="", prompt="", reference="", base_output="", base_score=float(n % 2), adapter_output="",
             adapter_score=float(n % 2 or n < 100))
        for n, q in enumerate(QUESTIONS)
    ]  # fmt: skip


@pytest.fixture
def report():
    return verdicts.overall(verdicts.benchmarks([("squares", pairs())], STAGING), STAGING, name="staging")


def test_the_clean_score_stands_beside_the_verdict_and_does_not_change_it(report, curated_with, suite):
    parents = {"curated": curated_with(dict.fromkeys(range(100), 2) | {250: 0}), "suite:squares": suite}
    squares = with_clean_scores(report, {"squares": pairs()}, parents).gate("squares")
    before = report.gate("squares")
    assert (before.base, before.adapter) == (0.5, 0.625)
    assert (squares.verdict, squares.difference, squares.low) == (before.verdict, before.difference, before.low)
    assert dict(squares.facts) | {
        "contaminated_items": 100, "items_kept_out_of_training": 1, "clean_rows": 300, "clean_base": 0.5, "clean_adapter": 0.5,
        "clean_difference": 0.0,
    } == squares.facts  # fmt: skip
    assert squares.reason.endswith(
        "100 of its 400 questions stand in training rows: without them it went from 50% to 50% on 300 questions"
    )


def test_the_page_and_the_table_say_it(report, curated_with, suite):
    evidence = {"squares": pairs()}
    parents = {"curated": curated_with(dict.fromkeys(range(100), 1)), "suite:squares": suite}
    shown = with_clean_scores(report, evidence, parents)
    page = report_page(shown, evidence, config={}, parents={})
    assert "contaminated items 100" in page and "without them it went from 50% to 50%" in page
    assert "stand in training rows" in gate_table(shown)[0]["why"]


def test_nothing_changes_where_curate_found_nothing(report, curated_with, suite):
    for held in (None, {}):
        parents = {"curated": curated_with(held), "suite:squares": suite}
        assert report_json(with_clean_scores(report, {"squares": pairs()}, parents)) == report_json(report)
    broken = verdicts.overall([verdicts.broken("squares", "benchmark", "no numbers")], STAGING, name="staging")
    parents = {"curated": curated_with({1: 1}), "suite:squares": suite}
    assert report_json(with_clean_scores(broken, {"squares": "no numbers"}, parents)) == report_json(broken)


def test_items_whose_rows_were_removed_are_counted_and_the_score_stays(report, curated_with, suite):
    parents = {"curated": curated_with({7: 0}), "suite:squares": suite}
    squares = with_clean_scores(report, {"squares": pairs()}, parents).gate("squares")
    assert squares.facts["contaminated_items"] == 0 and squares.facts["items_kept_out_of_training"] == 1
    assert squares.reason == report.gate("squares").reason and "clean_base" not in squares.facts


def test_a_suite_that_was_trained_on_whole_shows_nothing_new(report, curated_with, suite):
    parents = {"curated": curated_with(dict.fromkeys(range(400), 1)), "suite:squares": suite}
    squares = with_clean_scores(report, {"squares": pairs()}, parents).gate("squares")
    assert squares.facts["clean_rows"] == 0 and squares.reason.endswith(
        "stand in training rows, so it shows nothing new"
    )


@pytest.fixture
def trained_on_letters(publish, curated, gate, home, tmp_path):
    """The conftest's curated dataset, with the first 100 questions of the suite in its training rows."""
    folder = tmp_path / "curated"
    shutil.copytree(curated.folder, folder)
    (folder / "manifest.json").unlink()
    asked = [json.loads(line)["context"] for line in (home.home / "suites/letters.jsonl").read_text().splitlines()]
    contamination(folder, dict.fromkeys(asked[:100], 1))
    return publish("curated_dataset", folder)


@pytest.mark.slow
def test_an_evaluation_shows_the_clean_score(gate, job_of, store, trained_on_letters):
    from dataclasses import replace

    from ft_pipeline.gate.main import body
    from ft_pipeline.workers.messages import ignore

    job = job_of(gate, "zero")
    parents = {**job.spec.parents, "curated": trained_on_letters.ref}
    job = replace(job, spec=replace(job.spec, parents=parents))
    body(job, store, ignore)
    letters = read_report(store.find(job.spec)).gate("letters")
    assert letters.facts["contaminated_items"] == 100 and letters.facts["clean_rows"] == 140
    assert letters.facts["clean_difference"] == letters.difference == 0
