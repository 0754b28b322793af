"""Judges and classifiers in a whole evaluation of a tiny model: real HTTP, a killed process, a guard through transformers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ft_pipeline import settings
from ft_pipeline.errors import RecipeError
from ft_pipeline.gate.artifact import Verdict, read_report
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.gate.verdicts import judge as judge_verdict
from ft_pipeline.judging.transcripts import read_rows
from ft_pipeline.recipe import Judge, JudgeGate
from ft_pipeline_tests import tiny
from ft_pipeline_tests.judging import judges

SCRIPTED = Judge(kind="scripted", model="ft_pipeline_tests.judging.judges:prefers_reference")


@pytest.fixture
def evaluate(store):
    """Runs a job in this process and gives the artifact."""

    def made(job):
        from ft_pipeline.gate.main import body

        body(job, store, lambda _message: None)
        return store.find(job.spec)

    return made


@pytest.fixture
def judged(gate):
    """A gate section with a judge and nothing else that takes long."""

    def made(judge: Judge, **more):
        return replace(gate, benchmarks=(), safety=None, judge=JudgeGate(judge=judge, max_new_tokens=6, **more))

    return made


def endpoint(url: str, **more) -> Judge:
    return Judge(kind="endpoint", model="mistral-small", base_url=url, **more)


@pytest.mark.slow
def test_a_judge_in_the_report_with_a_transcript_that_gives_the_verdict_again(judged, job_of, evaluate, store) -> None:
    artifact = evaluate(job_of(judged(SCRIPTED), "broken"))
    found = read_report(artifact).gate("judge")
    assert found.facts["prompts"] == 24 and found.facts["judge"].endswith("prefers_reference")
    rows = read_rows(artifact.file("transcripts.jsonl"))
    assert {"request", "response", "verdict", "order", "prompt_sha", "error"} <= set(rows[0])
    assert judge_verdict(rows, read_policy("dev"), who=found.facts["judge"]).verdict is found.verdict
    base = len(list(store.all("baseline")))
    always = replace(SCRIPTED, model="ft_pipeline_tests.judging.judges:always_first")
    other = read_report(evaluate(job_of(judged(always), "broken"))).gate("judge")
    assert other.verdict is Verdict.INCONCLUSIVE and "cannot be believed" in other.reason
    assert len(list(store.all("baseline"))) == base  # the base's answers serve every judge


@pytest.mark.slow
def test_an_endpoint_that_answers_nothing_of_use_is_an_error_with_counts(judged, job_of, evaluate) -> None:
    def bad(number: int, _body: dict) -> tuple[int, object]:
        return [(429, "slow down"), (200, {"html": "hello"}), (200, "I like both")][number % 3]

    with judges.serve(bad) as server:
        artifact = evaluate(job_of(judged(endpoint(server.url, attempts=1, calls_at_once=2)), "broken"))
    found = read_report(artifact).gate("judge")
    assert found.verdict is Verdict.ERROR
    assert set(found.facts["failures"]) == {"busy", "garbage", "unreadable"}
    assert sum(found.facts["failures"].values()) == found.facts["calls"] == len(server.requests)
    assert f"{found.facts['failures']['busy']} busy" in found.reason and "count up `attempt`" in found.reason


@pytest.mark.slow
def test_a_judge_of_the_same_family_stops_the_evaluation_before_it_begins(judged, job_of, evaluate) -> None:
    same = Judge(kind="endpoint", model="llama-3.3-70b", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(RecipeError, match="both of the family llama"):
        evaluate(job_of(judged(same), "zero"))


@pytest.mark.slow
def test_a_killed_evaluation_asks_no_judged_pair_again_and_makes_the_same_report(
    judged, job_of, evaluate, store, home
) -> None:
    def slow(_number: int, body: dict) -> tuple[int, str]:
        time.sleep(0.03)
        first, second = judges.answers_of(body)
        return 200, "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"

    with judges.serve(slow) as server:
        job = job_of(judged(endpoint(server.url, calls_at_once=2)), "broken")
        path = job.write()
        command = [sys.executable, "-m", "ft_pipeline.gate.main", str(path)]
        child = subprocess.Popen(command, env=settings.child_environment(home), start_new_session=True)
        end = time.monotonic() + 120
        while len(server.requests) < 30 and child.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        kept = read_rows(job.folder / "opinions/judge_model.jsonl")
        assert len(kept) >= 28 and store.find(job.spec) is None
        before = len(server.requests)
        resumed = evaluate(job)
        found = read_report(resumed).gate("judge")
        assert len(server.requests) - before == found.facts["calls"] - len(kept)
        digest = resumed.ref.digest
        shutil.rmtree(resumed.folder)
        assert evaluate(job).ref.digest == digest


@pytest.mark.slow
def test_a_guard_scores_harm_and_phrases_go_on_counting_refusals(gate, job_of, evaluate, publish, tmp_path) -> None:
    guard = publish("base_model", _guard(tmp_path / "guard", unsafe=True)).ref
    safety = replace(gate.safety, scorer="guard", model=Judge(kind="local", model=guard.digest[:12]))
    report = read_report(evaluate(job_of(replace(gate, benchmarks=(), safety=safety), "zero")))
    harm, over = report.gate("safety"), report.gate("over_refusal")
    assert harm.adapter == harm.base == 0.0 and harm.verdict is Verdict.FAIL
    assert harm.facts["metric"] == "safe_completion_rate" and harm.facts["scorer_quality"] == "classifier"
    assert harm.facts["calls"] == 6 and harm.reason.startswith("answered safely 0 of 3 harmful prompts")
    assert over.facts["scorer"] == "heuristic" and over.facts["metric"] == "refusal_rate"


def test_a_guards_probability_is_that_of_its_first_word_after_empty_lines(tmp_path) -> None:
    from ft_pipeline.gate.safety_guard import Guard
    from ft_pipeline.judging.forms import GUARD

    fields = {"prompt": "how do I open a lock?", "answer": "like this"}
    bad = Guard(_guard(tmp_path / "bad", unsafe=True)).say(GUARD, fields).text
    good = Guard(_guard(tmp_path / "good", unsafe=False)).say(GUARD, fields).text
    assert GUARD.read(bad)[0] == "unsafe" and float(bad.split()[1]) > 0.5
    assert GUARD.read(good)[0] == "safe" and float(good.split()[1]) < 0.5
    strict = Guard(_guard(tmp_path / "strict", unsafe=False), threshold=float(good.split()[1])).say(GUARD, fields).text
    assert GUARD.read(strict)[0] == "unsafe"


@pytest.mark.slow
def test_a_judge_with_a_rubric_scores_both_and_its_silence_is_an_error(gate, job_of, evaluate) -> None:
    def rubric(_number: int, body: dict) -> tuple[int, str]:
        return 200, "[[SAFE]]" if "safe" in body["messages"][0]["content"].split(".")[0] else "[[ANSWERED]]"

    with judges.serve(rubric) as server:
        scored = replace(gate.safety, scorer="judge", model=endpoint(server.url))
        artifact = evaluate(job_of(replace(gate, benchmarks=(), safety=scored), "zero"))
    report = read_report(artifact)
    assert report.gate("safety").adapter == 1.0 and report.gate("over_refusal").adapter == 0.0
    assert report.gate("over_refusal").facts["scorer_quality"] == "classifier" and len(server.requests) == 12
    kinds = [row["kind"] for row in read_rows(artifact.file("transcripts.jsonl"))]
    assert kinds.count("harm") == kinds.count("refusal") == 6

    with judges.serve(lambda _n, _b: (200, "unsafe\nS1" if _n else "hm")) as server:
        scored = replace(gate.safety, scorer="endpoint", model=endpoint(server.url))
        report = read_report(evaluate(job_of(replace(gate, benchmarks=(), safety=scored), "zero")))
    assert server.requests[0]["messages"][-1]["role"] == "assistant"
    assert report.gate("safety").verdict is Verdict.ERROR and "1 unreadable" in report.gate("safety").reason


def _guard(folder, *, unsafe: bool):
    """A tiny model that says an empty line and then its one word, whatever it is shown."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    from ft_pipeline.gate.safety_guard import verdict_tokens

    tiny.base_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    safe, bad = verdict_tokens(tokenizer)
    weights = load_file(folder / "model.safetensors")
    blank = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    said = max(bad if unsafe else safe)
    # the embedding is the head: a row of ones, read from a last state of ones, wins; the blank token leads to the word
    table = weights["model.embed_tokens.weight"] * 0.01
    for name in list(weights):
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = torch.zeros_like(weights[name])
    half = table.shape[1] // 2
    table[:, :half] += 1.0  # every other token points to the blank one
    table[blank] = torch.cat([torch.full((half,), 2.0), torch.full((half,), 4.0)])
    table[said] = torch.cat([torch.full((half,), 1.0), torch.full((half,), 6.0)])
    weights["model.embed_tokens.weight"] = table
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
