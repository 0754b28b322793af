"""`benchmarks`: from a Hub without internet, or a folder, to a suite that a recipe names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ft_pipeline.errors import NotFoundError, RecipeError, UserError
from ft_pipeline.gate.evaluation import publish_suites
from ft_pipeline.gate.official import the_suite
from ft_pipeline.planner import refuse_impossible
from ft_pipeline.recipe import BenchmarkGate, Gate
from ft_pipeline_tests import tiny
from ft_pipeline_tests.acquire.hub_server import running_hub
from ft_pipeline_tests.gate import mirrors

pytestmark = pytest.mark.slow
"""Whoever builds imports lm_eval: 6 s."""


def test_a_mirror_from_the_hub_is_pinned_built_listed_and_verified(typed, store, home, tmp_path, monkeypatch) -> None:
    folder = mirrors.truthfulqa(tmp_path / "repository")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with running_hub() as hub:
        commit = hub.repo("datasets", "truthfulqa/truthful_qa").push({**files, "run_me.py": b"raise SystemExit(1)"})
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        answer = typed("benchmarks", "fetch", "truthfulqa_mc1")
        assert answer.code == 0 and commit in answer.out
        assert typed("benchmarks", "fetch", "truthfulqa_mc2", "--revision", commit).code == 0
    (found,) = store.all("benchmark_mirror")
    assert found.config == {"repo": "truthfulqa/truthful_qa", "revision": commit}
    assert "files/README.md" in found.files and not [n for n in found.files if n.endswith(".py")]
    assert typed("benchmarks", "build", "truthfulqa_mc1").code == 0
    listed = {row["task"]: row for row in json.loads(typed("benchmarks", "list", "--json").out)}
    assert (listed["truthfulqa_mc1"]["state"], listed["truthfulqa_mc1"]["rows"]) == ("ready", 8)
    states = [listed[t]["state"] for t in ("truthfulqa_mc2", "mmlu", "humaneval")]
    assert states == ["build it", "fetch it", "refused"]
    assert "is what it was" in typed("benchmarks", "verify", "truthfulqa_mc1").out
    gate = Gate(policy="dev", benchmarks=(BenchmarkGate(name="truth", task="truthfulqa_mc1"),))
    assert publish_suites(gate, store, home) == {"suite:truth": the_suite(store, "truthfulqa_mc1")}


def test_what_is_missing_is_named_with_its_cure_before_anything_is_trained(typed, store, home, tmp_path) -> None:
    recipe = tiny.recipe(gate=Gate(policy="dev", benchmarks=(BenchmarkGate(name="a", task="arc_challenge"),)))
    with pytest.raises(NotFoundError, match="no suite of arc_challenge in the store") as error:
        refuse_impossible(recipe, home)
    assert "benchmarks fetch arc_challenge" in error.value.cure
    answer = typed("benchmarks", "build", "arc_challenge")
    assert answer.code == 2 and "no mirror of allenai/ai2_arc" in answer.err and "--from FOLDER" in answer.err
    source = mirrors.arc(tmp_path / "repository")
    (source / "ARC-Challenge/train-00000-of-00001.parquet").unlink()
    assert typed("benchmarks", "fetch", "arc_challenge", "--from", str(source)).code == 0
    broken = typed("benchmarks", "build", "arc_challenge")
    assert broken.code == 2 and "does not hold what lm_eval asks for" in broken.err
    assert typed("benchmarks", "build", "ifeval").code == 2


def test_several_suites_of_a_task_are_told_apart_by_digest(typed, store, home, tmp_path) -> None:
    source = mirrors.mmlu(tmp_path / "repository")
    typed("benchmarks", "fetch", "mmlu", "--from", str(source))
    for subjects in ("anatomy", "anatomy, virology"):
        assert typed("benchmarks", "build", "mmlu", "--only", subjects).code == 0
    assert "no stratum 'botany'" in typed("benchmarks", "build", "mmlu", "--only", "botany").err
    one = BenchmarkGate(name="mmlu", task="mmlu")
    with pytest.raises(UserError, match="2 of them: suite of mmlu"):
        publish_suites(Gate(policy="dev", benchmarks=(one,)), store, home)
    wanted = max(store.all("eval_suite"), key=lambda m: m.counts["rows"])
    named = Gate(policy="dev", benchmarks=(replace(one, suite=wanted.digest[:12]),))
    assert publish_suites(named, store, home) == {"suite:mmlu": wanted.ref}


@pytest.mark.parametrize("fields", [{}, {"uri": "a", "task": "mmlu"}, {"uri": "a", "suite": "ab"}])
def test_a_benchmark_is_a_file_or_a_task(fields) -> None:
    with pytest.raises((ValueError, RecipeError), match="either your own file"):
        BenchmarkGate(name="x", **fields)
