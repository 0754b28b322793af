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
