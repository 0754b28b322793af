"""The eight scenarios of the design note, with the real client against the fake cluster: containers are processes of this machine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ft_pipeline.errors import Interrupted, TrainingFailed
from ft_pipeline.workers.kubernetes.manifest import job_name
from ft_pipeline_tests.workers.scenes import SUMS, counting, scene, until

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


@pytest.fixture
def stage(home, store, tmp_path):
    with scene(home, store, tmp_path) as made:
        yield made


def sums(run) -> list[int]:
    assert run.error is None, run.error
    return json.loads(run.made.file("sums.json").read_text())


def started(run) -> list[int]:
    """The steps at which the attempts of a run began, as the artifact tells."""
    return run.made.manifest.execution["started_at"]


def test_an_undisturbed_run_publishes_and_leaves_nothing(home, stage):
    job = counting(home)
    run = stage.finish(job)
    assert sums(run) == SUMS[:40] and started(run) == [0]
    assert run.step == 40 and run.told("starts at step 0")
    assert stage.cluster.made["jobs"] == stage.cluster.made["pods"] == 1
    stage.check_clean()
    assert not stage.store.bucket.list(f".runs/{job.spec.fingerprint}")
    again = stage.finish(job)
    assert again.made.ref == run.made.ref and stage.cluster.made["jobs"] == 1


def test_1_a_loss_that_is_nan_fails_for_good_and_is_not_tried_again(home, stage):
    run = stage.finish(counting(home, do="nan", at=5))
    assert isinstance(run.error, TrainingFailed) and "failed for good: loss is NaN at step 5" in run.error.what
    assert "PodFailurePolicy" in run.error.why and stage.cluster.made["pods"] == 1
    stage.check_clean()


def test_2_and_5_an_evicted_pod_is_replaced_and_no_step_is_lost(home, stage):
    job = counting(home, steps=80, every=1000)
    run = stage.start(job)
    until(lambda: run.step >= 10)
    stage.cluster.evict(stage.running(job)["metadata"]["name"])
    run.join()
    assert sums(run) == SUMS[:80] and stage.cluster.made["pods"] == 2 and stage.cluster.made["jobs"] == 1
    (attempt,) = stage.attempts(job)
    assert attempt["reason"] == "EvictionByEvictionAPI" and attempt["lost_steps"] == 0
    assert attempt["resumes_from"] == started(run)[1] >= 10
    stage.check_clean()


def test_3_exit_0_without_an_artifact_is_a_failure(home, stage):
    run = stage.finish(counting(home, do="exit 0", at=5))
    assert isinstance(run.error, TrainingFailed) and "published nothing" in run.error.what
    stage.check_clean()


def test_4_a_cancelled_trainer_that_does_not_listen_is_killed_after_its_grace(home, store, tmp_path):
    with scene(home, store, tmp_path) as stage:
        stage.profile = replace(stage.profile, grace_seconds=3, shutdown_seconds=1)
        run = stage.start(counting(home, steps=100000, do="stubborn"))
        until(lambda: run.step >= 3)
        run.interrupt = True
        run.join()
        assert isinstance(run.error, KeyboardInterrupt)
        stage.check_clean()
        assert stage.cluster.made["jobs"] == stage.cluster.made["pods"] == 1


def test_6_and_7_an_orchestrator_that_goes_leaves_the_job_and_the_next_one_finds_it(home, stage):
    job = counting(home, steps=180)
    first = stage.start(job, is_cancelled=lambda: False)
    until(lambda: first.step >= 10)
    first.interrupt = True
    first.join()
    assert isinstance(first.error, KeyboardInterrupt) and stage.cluster.running(job_name(job))
    second = stage.finish(job)
    assert sums(second) == SUMS[:180] and started(second) == [0]
    assert stage.cluster.made["jobs"] == stage.cluster.made["pods"] == 1
    assert second.told("made by an earlier orchestrator") and second.told("starts at step 0")
    stage.check_clean()


def test_7_a_job_that_ends_while_nobody_looks_is_found_and_cleared_away(home, stage):
    job = counting(home, steps=30)
    first = stage.start(job, is_cancelled=lambda: False)
    until(lambda: first.step >= 3)
    first.interrupt = True
    first.join()
    until(lambda: stage.store.find(job.spec))
    second = stage.finish(job)
    assert sums(second) == SUMS[:30] and second.told("same inputs, nothing to compute")
    stage.check_clean()
    assert stage.cluster.made["pods"] == 1


def test_8_a_cancelled_run_takes_its_objects_with_it_and_resumes_later(home, stage):
    job = counting(home, steps=180, every=1000)
    first = stage.start(job)
    until(lambda: first.step >= 10)
    first.interrupt = True
    first.join()
    stage.check_clean()
    second = stage.finish(job)
    assert sums(second) == SUMS[:180] and started(second)[1] >= 10
    assert stage.cluster.made["jobs"] == 2
    stage.check_clean()


def test_a_job_that_somebody_deletes_can_be_run_again(home, stage):
    job = counting(home, steps=180, every=1000)
    first = stage.start(job)
    until(lambda: first.step >= 10)
    api = stage.worker().cluster
    api.delete_job(job_name(job), api.job(job_name(job))["metadata"]["uid"])
    first.join()
    assert isinstance(first.error, Interrupted) and "deleted by somebody" in first.error.what
    assert sums(stage.finish(job)) == SUMS[:180]
    stage.check_clean()


def test_a_crash_is_tried_three_times_more_and_then_told_with_the_words_of_the_trainer(home, stage):
    stage.cluster.speed = 400
    run = stage.finish(counting(home, do="crash", at=5, every=1000))
    assert isinstance(run.error, TrainingFailed) and "crashed again and again" in run.error.what
    assert "a bug" in run.error.what and "MaxFailedIndexesExceeded" in run.error.why
    assert stage.cluster.made["pods"] == 4
    stage.check_clean()
