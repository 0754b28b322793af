"""Streams recorded from a real control plane, played to the real client through HTTP: the same conclusions, ten times as fast."""

from __future__ import annotations

import pytest

from ft_pipeline.errors import Interrupted, TrainingFailed
from ft_pipeline_tests.workers.fake_cluster_tape import TapeCluster
from ft_pipeline_tests.workers.scenes import BARE, Scene, counting

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]
COMPLETE = ("success", "evicted", "interrupted", "suspended", "quota")


@pytest.fixture
def played(home, store, tmp_path):
    """Plays a stream to a run, whose artifact is published while it plays when `publishes`."""

    def play(stream: str, *, publishes: bool = False, fault: int = 0):
        job = counting(home, nodes=2)

        def begun() -> None:
            if publishes:
                with store.publish(job.spec) as draft:
                    (draft.folder / "sums.json").write_text("[]")

        with TapeCluster(tmp_path / "cluster", stream, speed=10, begun=begun) as cluster:
            cluster.faults.watch += [fault] * 4 if fault else []
            stage = Scene(home, store, cluster, BARE)
            run = stage.finish(job)
            stage.check_clean()
            return run, stage, job

    return play


@pytest.mark.parametrize("stream", COMPLETE)
def test_a_job_that_completes_gives_its_artifact(played, stream):
    run, stage, _ = played(stream, publishes=True)
    assert run.error is None and run.made is not None and stage.cluster.made["jobs"] == 1


def test_completion_without_an_artifact_is_no_success(played):
    run, _, _ = played("success")
    assert isinstance(run.error, TrainingFailed) and "published nothing" in run.error.what


def test_nan_is_told_with_the_words_of_the_pod_that_failed_not_of_the_one_that_was_stopped(played):
    run, _, _ = played("nan")
    assert isinstance(run.error, TrainingFailed) and "failed for good: loss is NaN at step 17" in run.error.what
    assert "PodFailurePolicy" in run.error.why


def test_crashes_are_told_as_crashes(played):
    run, stage, job = played("crash")
    assert (
        isinstance(run.error, TrainingFailed) and "crashed again and again, at last with exit code 1" in run.error.what
    )
    assert "MaxFailedIndexesExceeded" in run.error.why and len(stage.attempts(job)) == 4


@pytest.mark.parametrize("stream", ["deadline", "unschedulable"])
def test_a_deadline_is_told_as_such(played, stream):
    run, _, _ = played(stream)
    assert isinstance(run.error, TrainingFailed) and "did not end within its deadline" in run.error.what
    assert "DeadlineExceeded" in run.error.why


def test_a_deleted_job_can_be_run_again(played):
    run, _, _ = played("deleted")
    assert isinstance(run.error, Interrupted) and "deleted by somebody" in run.error.what


def test_why_it_waits_is_told_in_the_words_of_the_cluster(played):
    assert played("unschedulable")[0].told("Unschedulable: 0/")


def test_a_quota_is_told_though_half_of_the_gang_runs(played):
    assert played("quota", publishes=True)[0].told("exceeded quota")


def test_an_eviction_is_written_down_and_counts_as_interruption(played):
    _, stage, job = played("evicted", publishes=True)
    (attempt,) = stage.attempts(job)
    assert (attempt["index"], attempt["exit_code"], attempt["outcome"]) == (1, 143, "preempted")
    assert attempt["reason"] == "EvictionByEvictionAPI" and attempt["seconds"] == 4


@pytest.mark.parametrize("fault", [410, 504])
@pytest.mark.parametrize("stream", ["evicted", "nan"])
def test_broken_watches_change_no_conclusion(played, stream, fault):
    run, _, _ = played(stream, publishes=stream == "evicted", fault=fault)
    assert (run.made is not None) if stream == "evicted" else ("NaN at step 17" in run.error.what)
