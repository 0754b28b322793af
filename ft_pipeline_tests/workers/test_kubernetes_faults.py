"""What a cluster does to a run besides: webhooks, quotas, missing nodes, power loss, gangs torn apart, an API server that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ft_pipeline.errors import RecipeError, StorageError, TrainingFailed
from ft_pipeline.workers.kubernetes.manifest import MARKET, job_name
from ft_pipeline.workers.kubernetes.profile import Queue
from ft_pipeline_tests.workers.fake_cluster import NAMESPACE, Node
from ft_pipeline_tests.workers.scenes import PACE, ROOT, SUMS, counting, scene, until
from ft_pipeline_tests.workers.test_kubernetes_scenarios import started, sums

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


@pytest.fixture
def stage(home, store, tmp_path, monkeypatch):
    """Gangs find each other by files: torch's agent is tested with a real training."""
    monkeypatch.setattr("ft_pipeline.workers.kubernetes.manifest.LAUNCHER", "ft_pipeline_tests.workers.counting_pod")
    with scene(home, store, tmp_path) as made:
        yield made


def test_a_webhook_that_is_down_is_waited_for_and_told_with_its_words(home, stage):
    words = 'Internal error occurred: failed calling webhook "mjob.kb.io": connection refused'
    stage.cluster.faults.create += [(500, words)] * 3
    run = stage.finish(counting(home, steps=5))
    assert sums(run) == SUMS[:5] and run.told("does not take") and run.told("mjob.kb.io")
    assert stage.cluster.made["jobs"] == 1
    stage.check_clean()


def test_a_webhook_that_stays_down_is_an_error_of_the_cluster_and_leaves_nothing(home, stage):
    stage.cluster.faults.create += [(500, "failed calling webhook")] * 999
    run = stage.finish(counting(home, steps=5), pace=replace(PACE, patience=0.5))
    assert isinstance(run.error, StorageError) and "failed calling webhook" in run.error.what
    stage.check_clean()


def test_a_manifest_that_the_server_refuses_is_told_with_its_field(home, stage):
    run = stage.finish(counting(home, steps=5), profile=replace(stage.profile, queue=Queue(name="not a label")))
    assert isinstance(run.error, RecipeError) and "metadata.labels" in run.error.what
    stage.check_clean()


def test_a_quota_that_is_used_up_is_told_and_the_run_begins_when_it_is_free(home, stage):
    stage.cluster.quota_pods = 0
    run = stage.start(counting(home, steps=5))
    until(lambda: run.told("exceeded quota: ft-gpu"))
    assert run.told("FailedCreate") and not run.step
    stage.cluster.quota_pods = 9
    assert sums(run.join()) == SUMS[:5]
    stage.check_clean()


def test_a_suspended_job_is_told_as_queued(home, stage):
    job = counting(home, steps=5)
    stage.cluster.quota_pods = 0
    run = stage.start(job)
    with stage.cluster.changed:
        made = stage.cluster.wait(lambda: stage.cluster.objects.get(("jobs", job_name(job))))
        made["spec"]["suspend"] = True
        stage.cluster.touch("jobs", made)
    until(lambda: run.told("queued: the Job is suspended"))
    with stage.cluster.changed:
        made["spec"]["suspend"], stage.cluster.quota_pods = False, 9
        stage.cluster.touch("jobs", made)
    assert sums(run.join()) == SUMS[:5]
    stage.check_clean()


def _spot(home, store, tmp_path, nodes):
    return scene(home, store, tmp_path, nodes=nodes, spot_label=("capacity", "spot"))


def test_spot_nodes_that_do_not_come_give_way_to_on_demand_and_the_next_run_asks_for_spot_again(home, store, tmp_path):
    nodes = [Node("steady", {"capacity": "on-demand"})]
    with _spot(home, store, tmp_path, nodes) as stage:
        place = {"spot": True, "on_demand_after_minutes": 0.01}
        run = stage.finish(counting(home, steps=5, place=place))
        assert (
            sums(run) == SUMS[:5] and run.told("didn't match Pod's node affinity") and run.told("no spot node in 0.01")
        )
        markets = [
            o["metadata"]["annotations"][MARKET]
            for _, p, kind, o in stage.cluster.history
            if p == "jobs" and kind == "ADDED"
        ]
        assert markets == ["spot", "on-demand"]
        generations = {
            o["metadata"]["annotations"]["ft-pipeline/generation"]
            for _, p, _, o in stage.cluster.history
            if p == "jobs"
        }
        assert len(generations) == 1
        stage.check_clean()
        stage.cluster.nodes["fleeting"] = Node("fleeting", {"capacity": "spot"})
        again = stage.finish(counting(home, name="next", steps=5, place=place))
        assert sums(again) == SUMS[:5] and again.told("(spot)") and not again.told("(on-demand)")
        stage.check_clean()


def test_a_node_that_loses_power_costs_at_most_the_steps_since_the_checkpoint(home, stage):
    job = counting(home, steps=200, every=20, seconds=0.03)
    run = stage.start(job)
    until(lambda: run.step >= 45)
    pod = stage.running(job)
    stage.cluster.power_off(pod["spec"]["nodeName"])
    run.join()
    assert sums(run) == SUMS[:200]
    (attempt,) = stage.attempts(job)
    # a checkpoint is on its way to the store for at most a look of the courier, a second
    assert (
        attempt["reason"].startswith("DeletionBy")
        and attempt["exit_code"] is None
        and attempt["lost_steps"] <= 20 + 1.5 / 0.03
    )
    assert started(run)[1] % 20 == 0 and started(run)[1] > 0
    stage.check_clean()


def test_index_0_that_is_evicted_takes_the_gang_with_it_and_no_step_is_lost(home, stage):
    job = counting(home, steps=150, every=1000, nodes=2)
    run = stage.start(job)
    until(lambda: run.step >= 10)
    stage.cluster.evict(stage.running(job, 0)["metadata"]["name"])
    run.join()
    assert sums(run) == SUMS[:150] and started(run)[1] >= 10 and stage.cluster.made["jobs"] == 1
    assert all(a["lost_steps"] == 0 for a in stage.attempts(job))
    stage.check_clean()


def test_index_1_that_is_evicted_makes_all_save_and_no_step_is_lost(home, stage):
    job = counting(home, steps=150, every=1000, nodes=2)
    run = stage.start(job)
    until(lambda: run.step >= 10)
    stage.cluster.evict(stage.running(job, 1)["metadata"]["name"])
    run.join()
    assert sums(run) == SUMS[:150] and len(started(run)) == 2 and started(run)[1] >= 10
    assert {a["index"] for a in stage.attempts(job)} == {0, 1}
    stage.check_clean()


def test_four_pods_that_are_lost_at_once_come_back_together(home, stage):
    stage.cluster.speed = 10
    job = counting(home, steps=150, every=1000, nodes=4)
    run = stage.start(job)
    until(lambda: run.step >= 10)
    for index in range(4):
        stage.cluster.evict(stage.running(job, index)["metadata"]["name"])
    run.join()
    assert sums(run) == SUMS[:150] and started(run)[1] >= 10 and stage.cluster.made["pods"] == 8
    assert len(stage.attempts(job)) == 4 and all(a["lost_steps"] == 0 for a in stage.attempts(job))
    stage.check_clean()


@pytest.mark.parametrize("fault", ["drop", "410", "504"])
def test_a_watch_that_breaks_is_begun_again_and_nothing_is_missed(home, stage, fault):
    run = stage.start(counting(home, steps=100))
    until(lambda: run.step >= 5)
    if fault == "drop":
        stage.cluster.faults.drop += 1
    else:
        stage.cluster.faults.watch += [int(fault)] * 3
        stage.cluster.faults.drop += 1
    assert sums(run.join()) == SUMS[:100]
    assert stage.cluster.requests["GET jobs watch"] >= 2 and stage.cluster.made["pods"] == 1
    stage.check_clean()


def test_an_api_server_that_is_away_is_told_and_the_run_goes_on_meanwhile(home, stage):
    job = counting(home, steps=150)
    run = stage.start(job)
    until(lambda: run.step >= 5)
    stage.cluster.faults.down = True
    until(lambda: run.told("the API server does not answer"))
    before = run.step
    until(lambda: run.step > before or stage.store.find(job.spec))
    time.sleep(2)
    stage.cluster.faults.down = False
    assert sums(run.join()) == SUMS[:150] and started(run) == [0]
    stage.check_clean()


def test_an_orchestrator_that_is_killed_leaves_one_job_and_the_next_one_finishes_it(home, stage):
    job = counting(home, steps=250)
    program = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from kubernetes import client; from ft_pipeline import settings; from ft_pipeline.store.artifacts import open_store\n"
        "from ft_pipeline.workers.job import read_job; from ft_pipeline.workers.kubernetes.client import cluster_of\n"
        "from ft_pipeline.workers.kubernetes.profile import BARE; from ft_pipeline.workers.kubernetes.worker import KubernetesWorker\n"
        "made = client.Configuration(); made.host = sys.argv[2]; w = settings.load(); s = open_store(w)\n"
        f"p = replace(BARE, environment={dict(stage.profile.environment)!r}, grace_seconds=10, shutdown_seconds=8)\n"
        f"KubernetesWorker(settings=w, store=s, cluster=cluster_of(made, {NAMESPACE!r}), profile=p).run(read_job(Path(sys.argv[1])), print)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    orchestrator = subprocess.Popen(
        [sys.executable, "-c", program, str(job.write()), stage.cluster.url], env=environment
    )
    stage.running(job)
    orchestrator.send_signal(signal.SIGKILL)
    orchestrator.wait(30)
    run = stage.finish(job)
    assert (
        sums(run) == SUMS[:250]
        and started(run) == [0]
        and stage.cluster.made["jobs"] == stage.cluster.made["pods"] == 1
    )
    stage.check_clean()


def test_a_run_that_is_cancelled_while_it_waits_for_a_node_leaves_nothing(home, store, tmp_path):
    with scene(home, store, tmp_path, nodes=[Node("full", pods=0)]) as stage:
        run = stage.start(counting(home))
        until(lambda: run.told("nodes are available"))
        run.interrupt = True
        stage.cluster.nodes["full"].taints = ("other",)  # another reason: the listener hears of it and interrupts
        run.join()
        assert isinstance(run.error, KeyboardInterrupt) and stage.cluster.made["pods"] == 1
        stage.check_clean()


def test_a_run_that_is_interrupted_for_ever_without_a_new_checkpoint_is_given_up(home, stage):
    stage.cluster.speed = 400
    job = counting(home, steps=1000, every=100000, nodes=2)
    run = stage.start(job)
    stage.cluster.environment["FT_STORE"] = (
        "s3://nowhere-at-all"  # every pod says 5; with a wrong address it would say 75
    )
    deadline = time.monotonic() + 60
    while run.thread.is_alive() and time.monotonic() < deadline:
        for pod in stage.cluster.running(job_name(job)):
            stage.cluster.evict(pod["metadata"]["name"])
        time.sleep(0.2)
    run.join()
    assert isinstance(run.error, TrainingFailed) and "interrupted 5 times in a row" in run.error.what
    stage.check_clean()


def test_two_orchestrators_at_once_make_one_job_and_get_one_artifact(home, stage):
    job = counting(home, steps=100)
    runs = [stage.start(job) for _ in range(3)]
    made = [sums(run.join()) for run in runs]
    assert made == [SUMS[:100]] * 3 and stage.cluster.made["jobs"] == stage.cluster.made["pods"] == 1
    stage.check_clean()
