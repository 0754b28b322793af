"""The three dagster.yaml and the values of the Helm chart: names that exist, and what must be the same in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ft_pipeline.settings import PROJECT
from ft_pipeline_tests.k8s.kustomize import built

DAGSTER = PROJECT / "k8s" / "dagster"
VARIANTS = (PROJECT / "dagster.yaml", DAGSTER / "dagster-single-server.yaml", DAGSTER / "dagster-kubernetes.yaml")
VALUES: dict[str, Any] = yaml.safe_load((DAGSTER / "values.yaml").read_text())
POD = frozenset({
    "image", "envConfigMaps", "envSecrets", "podSecurityContext", "securityContext", "resources", "volumes", "volumeMounts",
})  # fmt: skip
CHART: dict[str, frozenset[str]] = {
    "": frozenset({
        "global", "rbacEnabled", "generatePostgresqlPasswordSecret", "generateCeleryConfigSecret", "serviceAccount",
        "dagsterWebserver", "dagsterDaemon", "dagster-user-deployments", "runLauncher", "concurrency", "postgresql", "rabbitmq",
        "redis", "flower", "computeLogManager", "retention", "telemetry", "ingress",
    }),
    "dagsterWebserver": POD | {"replicaCount", "service", "workspace"},
    "dagsterDaemon": POD | {
        "enabled", "heartbeatTolerance", "runCoordinator", "runMonitoring", "runRetries", "sensors", "schedules",
    },
    "dagsterDaemon.runCoordinator.config.queuedRunCoordinator": frozenset({
        "maxConcurrentRuns", "tagConcurrencyLimits", "dequeueIntervalSeconds", "dequeueNumWorkers", "dequeueUseThreads",
    }),
    "runLauncher.config.k8sRunLauncher": frozenset({
        "image", "imagePullPolicy", "jobNamespace", "loadInclusterConfig", "kubeconfigFile", "envConfigMaps", "envSecrets", "envVars",
        "volumes", "volumeMounts", "labels", "failPodOnRunFailure", "runK8sConfig",
    }),
    "concurrency": frozenset({"enabled", "pools", "runs"}),
    "concurrency.runs": frozenset({"maxConcurrentRuns", "tagConcurrencyLimits"}),
    "computeLogManager.config.s3ComputeLogManager": frozenset({
        "bucket", "prefix", "region", "uploadInterval", "skipEmptyFiles", "localDir", "endpointUrl", "useSsl", "verify",
    }),
}  # fmt: skip
"""Place in the values -> the names that the chart's schema (helm/dagster/schema of dagster-io/dagster) has there."""


def at(place: str) -> dict[str, Any]:
    found = VALUES
    for step in place.split(".") if place else ():
        found = found[step]
    return found


@pytest.mark.parametrize("place", CHART)
def test_the_values_have_no_name_that_the_chart_has_not(place):
    assert set(at(place)) <= CHART[place]


@pytest.mark.parametrize("path", VARIANTS, ids=lambda p: p.name)
def test_dagster_takes_each_variant(path: Path, tmp_path, monkeypatch):
    from dagster._core.instance.config import dagster_instance_config

    for name in ("FT_PG_HOST", "FT_PG_USER", "FT_PG_PASSWORD", "FT_LOG_BUCKET", "DAGSTER_PG_PASSWORD"):
        monkeypatch.setenv(name, "x")
    (tmp_path / "dagster.yaml").write_text(path.read_text())
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["run_coordinator"]["class"] == "QueuedRunCoordinator"


def test_what_decides_about_runs_is_the_same_in_all():
    said = [yaml.safe_load(path.read_text()) for path in VARIANTS]
    for key in ("run_monitoring", "run_retries", "retention"):
        assert said[0][key] == said[1][key] == said[2][key], key
    limits = [s["concurrency"]["runs"]["tag_concurrency_limits"] for s in said]
    assert limits[0] == limits[1] == limits[2] == VALUES["concurrency"]["runs"]["tagConcurrencyLimits"]
    daemon, cluster = VALUES["dagsterDaemon"], said[2]
    assert daemon["runMonitoring"]["startTimeoutSeconds"] == cluster["run_monitoring"]["start_timeout_seconds"]
    assert daemon["runRetries"]["maxRetries"] == cluster["run_retries"]["max_retries"]
    assert VALUES["concurrency"]["runs"]["maxConcurrentRuns"] == cluster["concurrency"]["runs"]["max_concurrent_runs"]


def test_the_code_location_has_the_same_name_everywhere():
    (local,) = yaml.safe_load((PROJECT / "workspace.yaml").read_text())["load_from"]
    (server,) = VALUES["dagsterWebserver"]["workspace"]["servers"]
    (deployed,) = VALUES["dagster-user-deployments"]["deployments"]
    arguments = deployed["dagsterApiGrpcArgs"]
    assert local["python_module"]["location_name"] == server["name"] == "ft_pipeline"
    assert arguments[arguments.index("--location-name") + 1] == "ft_pipeline"
    assert (server["host"], server["port"]) == (deployed["name"], deployed["port"])


def test_runs_use_the_token_of_their_pod_and_no_file():
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    plain = yaml.safe_load((DAGSTER / "dagster-kubernetes.yaml").read_text())["run_launcher"]["config"]
    assert launcher["loadInclusterConfig"] and launcher["kubeconfigFile"] is None
    assert plain["load_incluster_config"] and plain["kubeconfig_file"] is None and "kubeconfig_file" in plain


def test_names_of_accounts_maps_and_namespaces_agree_with_the_plain_manifests():
    objects = built(DAGSTER / "plain")
    made = {(o["kind"], o["metadata"]["name"]) for o in objects}
    assert ("ServiceAccount", VALUES["global"]["serviceAccountName"]) in made
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    assert ("Namespace", launcher["jobNamespace"]) in made
    assert all(("ConfigMap", m["name"]) in made for m in launcher["envConfigMaps"])
    assert all(("ConfigMap", v["configMap"]["name"]) in made for v in launcher["volumes"] if "configMap" in v)
    (settings,) = [o["data"] for o in objects if o["metadata"]["name"] == "ft-settings"]
    mounts = tuple(mount["mountPath"] for mount in launcher["volumeMounts"])
    assert settings["FT_PLACEMENT"].startswith(mounts) and settings["FT_SIGNING_KEY"].startswith(mounts)


def test_the_placement_of_the_cluster_can_be_read():
    from ft_pipeline.workers.placed import placement_of

    (text,) = [o["data"]["placement.yaml"] for o in built(DAGSTER / "plain") if o["metadata"]["name"] == "ft-placement"]
    assert placement_of(yaml.safe_load(text)).worker == "kubernetes"


@pytest.mark.slow
def test_launcher_and_logs_take_their_settings():
    """Imports dagster_k8s: 18 s cold."""
    from dagster._config import process_config, resolve_to_config_type
    from dagster_aws.s3.compute_log_manager import S3ComputeLogManager
    from dagster_k8s import K8sRunLauncher

    said = yaml.safe_load((DAGSTER / "dagster-kubernetes.yaml").read_text())
    for key, kind in (("run_launcher", K8sRunLauncher), ("compute_logs", S3ComputeLogManager)):
        made = process_config(resolve_to_config_type(kind.config_type()), said[key]["config"])
        assert made.success, made.errors


@pytest.mark.slow
def test_the_code_location_loads_without_what_the_control_plane_has_not():
    """In an interpreter that cannot import them: 5 s."""
    import subprocess
    import sys

    absent = ("torch", "accelerate", "peft", "trl", "deepspeed", "lm_eval", "vllm")
    code = f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\nfrom ft_pipeline.definitions import defs\ndefs().resolve_asset_graph()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_the_arguments_of_the_code_server_exist():
    from dagster._cli.api import grpc_command

    (deployed,) = VALUES["dagster-user-deployments"]["deployments"]
    known = {word for option in grpc_command.params for word in option.opts}
    assert {word for word in deployed["dagsterApiGrpcArgs"] if word.startswith("-")} <= known
