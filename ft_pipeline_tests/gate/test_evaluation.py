"""The evaluation end to end on a tiny model: an adapter that changes nothing, one that breaks everything, one without numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ft_pipeline.errors import DataError
from ft_pipeline.gate.artifact import Verdict, read_report
from ft_pipeline.workers.messages import ignore


@pytest.fixture
def evaluate(store):
    """Runs a job in this process and gives the artifact and what it said."""

    def made(job):
        from ft_pipeline.gate.main import body

        said = []
        body(job, store, said.append)
        return store.find(job.spec), said

    return made


@pytest.mark.slow
def test_an_adapter_that_changes_nothing_differs_by_exactly_nothing(gate, job_of, evaluate) -> None:
    artifact, said = evaluate(job_of(gate, "zero"))
    letters = read_report(artifact).gate("letters")
    assert letters.difference == 0 and letters.verdict is Verdict.PASS
    assert (letters.facts["gains"], letters.facts["losses"], letters.facts["mcnemar_p"]) == (0, 0, 1.0)
    assert 0.1 < letters.base < 0.5
    rows = _samples(artifact)
    assert all(r["base_output"] == r["adapter_output"] for r in rows) and len(rows) == 240 + 24 + 6
    last = [m for m in said if m.kind == "progress"][-1]
    # the base's noise, and the holdout in other words: these weights have no training data that could be compared
    assert last.done == last.total == 2 * (240 + 24 + 6) + 240 + 2 * 24


@pytest.mark.slow
def test_a_broken_adapter_fails_and_the_second_one_does_not_ask_the_base_again(gate, job_of, evaluate, store) -> None:
    wanted = replace(gate, policy="staging")
    zero, _ = evaluate(job_of(wanted, "zero"))
    assert len(list(store.all("baseline"))) == 4, "holdout, holdout in other words, letters, safety"
    # a base that knows the answers: the suite's key is what it chose itself
    artifact, said = evaluate(job_of(_answered_by(gate, zero, store), "broken"))
    report = read_report(artifact)
    letters = report.gate("letters")
    assert letters.base == 1.0 and letters.verdict is Verdict.FAIL and letters.difference < -0.03
    assert report.verdict is Verdict.FAIL and "letters" in report.reason
    assert "fell by" in letters.reason and "the policy allows less than 2 points" in letters.reason
    _, said = evaluate(job_of(wanted, "broken"))
    assert any("only the adapter is asked" in m.text for m in said)
    assert _base_side(store.find(job_of(wanted, "broken").spec)) == _base_side(zero)


@pytest.mark.slow
def test_scores_that_are_no_numbers_are_an_error_and_never_a_pass(gate, job_of, evaluate) -> None:
    artifact, _ = evaluate(job_of(gate, "nan"))
    report = read_report(artifact)
    assert report.verdict is Verdict.ERROR
    assert {g.verdict for g in report.gates} == {Verdict.ERROR}
    assert "not a number" in report.gate("letters").reason or "not numbers" in report.gate("letters").reason


@pytest.mark.slow
def test_the_same_job_gives_the_same_bytes_and_the_child_process_too(gate, job_of, evaluate, store, house) -> None:
    import shutil

    job = job_of(gate, "zero")
    first, _ = evaluate(job)
    kept = {n: e.sha256 for n, e in first.manifest.files.items()}
    shutil.rmtree(first.folder)
    for manifest in list(store.all("baseline")):
        shutil.rmtree(store.fetch(manifest.ref).folder)
    second = house.worker.run(job, ignore)
    assert {n: e.sha256 for n, e in second.manifest.files.items()} == kept
    assert second.ref.digest == first.ref.digest
    assert set(kept) == {"forest.png", "report.html", "samples.parquet", "verdicts.json"}


@pytest.mark.slow
def test_an_adapter_of_another_shape_is_refused_with_the_cure(
    gate, job_of, evaluate, adapter_folders, tmp_path
) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    alien = tmp_path / "alien"
    shutil.copytree(adapter_folders["zero"], alien)
    weights = {
        n: torch.zeros(w.shape[0], w.shape[1] * 2) for n, w in load_file(alien / "adapter_model.safetensors").items()
    }
    save_file(weights, alien / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter_folders["alien"] = alien
    with pytest.raises(DataError, match="does not fit this base model"):
        evaluate(job_of(gate, "alien"))


@pytest.mark.slow
def test_a_full_fine_tune_is_compared_too(gate, job_of, evaluate, adapter_folders, base_folder) -> None:
    adapter_folders["full"] = base_folder
    artifact, _ = evaluate(job_of(gate, "full"))
    assert read_report(artifact).gate("letters").difference == 0


@pytest.mark.slow
def test_a_changed_policy_is_another_report_and_a_moved_suite_is_not(gate, job_of, home) -> None:
    first = job_of(gate, "zero").spec.fingerprint
    assert job_of(replace(gate, policy="staging"), "zero").spec.fingerprint != first
    (home.home / "suites/letters.jsonl").rename(home.home / "moved.jsonl")
    moved = replace(gate, benchmarks=(replace(gate.benchmarks[0], uri="home://moved.jsonl"),))
    assert job_of(moved, "zero").spec.fingerprint == first


def _samples(artifact) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(artifact.file("samples.parquet")).to_pylist()


def _base_side(artifact) -> list:
    return [(r["gate"], r["id"], r["base_output"], r["base_score"]) for r in _samples(artifact)]


def _answered_by(gate, artifact, store):
    from ft_pipeline import settings

    chosen = {r["id"]: json.loads(r["base_output"])["chosen"] for r in _samples(artifact) if r["gate"] == "letters"}
    path = settings.load().home / "suites/letters.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["answer"] = row["choices"].index(chosen[row["id"]])
    known = path.with_name("known.jsonl")
    known.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return replace(gate, policy="staging", benchmarks=(replace(gate.benchmarks[0], uri=f"file://{known}"),))


def test_a_reward_model_is_not_judged_as_if_it_wrote() -> None:
    from ft_pipeline.errors import RecipeError
    from ft_pipeline.gate.evaluation import refuse_scores
    from ft_pipeline.recipe import RewardModel
    from ft_pipeline_tests import tiny

    refuse_scores(tiny.recipe())
    with pytest.raises(RecipeError, match="trains a reward model"):
        refuse_scores(tiny.recipe(method="reward", reward=RewardModel()))
