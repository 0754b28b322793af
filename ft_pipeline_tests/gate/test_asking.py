"""Asking: what is answered is not asked again, whatever killed the evaluation; looks end early; an engine that contradicts itself decides nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ft_pipeline.gate.artifact import Noise, Verdict, read_report
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.gate.rounds import blocks, rounds
from ft_pipeline.gate.verdicts.benchmark import looks_of
from ft_pipeline.gate.verdicts.overall import with_noise
from ft_pipeline.settings import child_environment
from ft_pipeline.workers.messages import ignore
from ft_pipeline.workers.outcome import PREEMPTED
from ft_pipeline_tests.gate.conftest import prompts, questions, write_jsonl


class Told:
    """A stop request that comes after so many questions."""

    def __init__(self, after: int) -> None:
        self.after, self.count = after, 0

    @property
    def asked(self) -> bool:
        self.count += 1
        return self.count > self.after

    def leave(self, before: str) -> None:
        from ft_pipeline.errors import Interrupted

        raise Interrupted(f"stopped before {before}")


class FakeProbe:
    kind = "benchmark"

    def __init__(self, count: int) -> None:
        self.ids = tuple(f"q{n}" for n in range(count))
        self.strata = tuple(f"s{n % 3}" for n in range(count))
        self.num_questions = count


def test_every_question_is_in_one_block_of_one_round_and_subjects_stay_together() -> None:
    probe, policy = FakeProbe(2_300), replace(read_policy("local"), sequential=True)
    plan = looks_of(policy, 2_300, num_suites=1)
    parts = rounds(probe, plan, seed="a")
    assert sorted(i for part in parts for block in part for i in block) == list(range(2_300))
    assert [sum(map(len, part)) for part in parts] == [500, 500, 1_300]
    for part in parts:
        flat = [probe.strata[i] for block in part for i in block]
        assert flat == sorted(flat)
    assert rounds(probe, plan, seed="a") == parts != rounds(probe, plan, seed="b")


def test_without_looks_all_is_asked_at_once() -> None:
    probe = FakeProbe(600)
    assert rounds(probe, None, seed="a") == [blocks(range(600), probe.strata)]


def test_an_engine_that_contradicts_itself_decides_nothing(report) -> None:
    policy = read_policy("local")
    quiet = with_noise(report, Noise(suite="letters", rows=200, differing=4), policy)
    assert quiet.verdict is Verdict.PASS and quiet.noise.share == 0.02
    loud = with_noise(report, Noise(suite="letters", rows=200, differing=5), policy)
    assert loud.verdict is Verdict.ERROR and "5 of 200 questions of letters" in loud.reason


@pytest.fixture
def report():
    from ft_pipeline.gate.artifact import EvalReport

    return EvalReport(verdict=Verdict.PASS, policy="local", reason="all 4 measured gates passed", gates=())


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on_where_it_was_and_gives_the_same_report(gate, job_of, store, home) -> None:
    import shutil

    from ft_pipeline.errors import Interrupted
    from ft_pipeline.gate.main import evaluate

    write_jsonl(home.home / "suites/letters.jsonl", questions(700))
    job = job_of(gate, "broken")
    asked = 0
    for _ in range(20):
        try:
            evaluate(job, store, ignore, stop=Told(1))
            break
        except Interrupted:
            asked += 1
    assert asked >= 3, "the stop came once a block"
    made = store.find(job.spec)
    assert not (job.folder / "answers").exists()
    digest = made.ref.digest
    shutil.rmtree(made.folder)
    for kind in ("baseline", "noise_floor"):
        for manifest in list(store.all(kind)):
            shutil.rmtree(store.fetch(manifest.ref).folder)
    evaluate(job, store, ignore, stop=Told(10**9))
    assert store.find(job.spec).ref.digest == digest


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_evaluation_loses_a_block_at_most(gate, job_of, store, home, house, number) -> None:
    write_jsonl(home.home / "suites/letters.jsonl", questions(1_200))
    write_jsonl(home.home / "suites/safety.jsonl", prompts(6))
    job = job_of(gate, "zero")
    job.folder.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-m", job.module, str(job.write())], env=child_environment(home), stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 90
    while len(list(job.folder.glob("answers/base-letters-*.json"))) < 2 and child.poll() is None:
        assert time.monotonic() < until, "the first blocks were never kept"
        time.sleep(0.01)
    child.send_signal(number)
    code = child.wait()
    assert code == (-9 if number == signal.SIGKILL else PREEMPTED)
    assert store.find(job.spec) is None
    kept = {p.name: p.read_bytes() for p in job.folder.glob("answers/*.json")}
    assert len(kept) >= 2 and all(json.loads(body) for body in kept.values())
    made = house.worker.run(job, ignore)
    assert read_report(made).gate("letters").difference == 0


@pytest.mark.slow
def test_a_harmless_adapter_is_decided_before_the_suite_ends(gate, job_of, store, home) -> None:
    from ft_pipeline.gate.main import evaluate

    write_jsonl(home.home / "suites/letters.jsonl", questions(1_500))
    job = job_of(replace(gate, policy="staging"), "zero")
    said = []
    evaluate(job, store, said.append, stop=Told(10**9))
    letters = read_report(store.find(job.spec)).gate("letters")
    assert letters.verdict is Verdict.PASS and letters.rows == 500
    assert any("decided after 500 of 1,500 questions" in m.text for m in said)
    last = [m for m in said if m.kind == "progress"][-1]
    assert last.done == last.total


@pytest.mark.slow
def test_the_noise_of_the_engine_is_measured_once_a_base(gate, job_of, store) -> None:
    from ft_pipeline.gate.main import evaluate

    for adapter in ("zero", "broken"):
        evaluate(job_of(gate, adapter), store, ignore, stop=Told(10**9))
    found = list(store.all("noise_floor"))
    assert len(found) == 1 and found[0].counts == {"rows": 240, "differing": 0}
    assert read_report(store.find(job_of(gate, "zero").spec)).noise == Noise(suite="letters", rows=240, differing=0)
