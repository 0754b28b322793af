"""An evaluation as a Job: the same report as here, and an eviction in the middle asks no answered block again."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests.gate.conftest import questions, write_jsonl
from ft_pipeline_tests.workers.scenes import scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_an_evaluation_that_is_evicted_gives_the_report_of_an_undisturbed_one(
    gate, job_of, home, store, house, tmp_path
):
    write_jsonl(home.home / "suites/letters.jsonl", questions(1_500))
    job = job_of(gate, "zero")
    here = house.worker.run(job, ignore)
    digest = here.ref.digest
    for kind in ("eval_report", "baseline", "noise_floor"):
        for manifest in list(store.all(kind)):
            shutil.rmtree(store.fetch(manifest.ref).folder)
    with scene(home, store, tmp_path) as stage:
        there = replace(job, placement=replace(job.placement, worker="kubernetes"), folder=tmp_path / "run")
        run = stage.start(there)
        pod = stage.running(there)
        stage.cluster.wait(
            lambda: any(m.kind == "progress" and m.facts.get("gate") == "letters" for m in run.said), 120
        )
        stage.cluster.evict(pod["metadata"]["name"])
        run.join(180)
        assert run.error is None, run.error
        assert run.made.ref.digest == digest
        assert stage.cluster.made["jobs"] == 1 and stage.cluster.made["pods"] == 2
        stage.check_clean()
