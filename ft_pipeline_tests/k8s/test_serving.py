"""The gateway and the reconciler in the cluster: commands that exist, a fleet file that is one, doors that are the only ones."""

from __future__ import annotations

import pytest

from ft_pipeline.cli.main import COMMANDS
from ft_pipeline.serve.fleet.inventory import read_inventory
from ft_pipeline.settings import PROJECT
from ft_pipeline_tests.k8s.kustomize import built

SERVING = PROJECT / "k8s" / "serving"


def named(kind: str, name: str, namespace: str) -> dict:
    """An object of k8s/serving."""
    (found,) = [
        o
        for o in built(SERVING)
        if (o["kind"], o["metadata"]["name"], o["metadata"].get("namespace")) == (kind, name, namespace)
    ]
    return found


@pytest.mark.parametrize(("name", "namespace"), [("ft-gateway", "ft-serving"), ("ft-fleet", "ft-control")])
def test_the_pod_runs_a_command_of_ours_over_a_fleet_that_can_be_read(name, namespace, tmp_path):
    pod = named("Deployment", name, namespace)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][0] == "ft-pipeline" and container["command"][1] in COMMANDS
    variables = {v["name"]: v["value"] for v in container["env"]}
    assert variables["FT_FLEET"] == "/etc/ft-fleet/fleet.yaml"
    assert {v["name"] for v in pod["volumes"]} >= {m["name"] for m in container["volumeMounts"]}
    path = tmp_path / "fleet.yaml"
    path.write_text(named("ConfigMap", "ft-fleet", namespace)["data"]["fleet.yaml"])
    (pool,) = read_inventory(path).pools
    assert pool.discover == "http://pool-llama31-8b.ft-serving.svc:8000"


def test_replicas_are_reached_by_gateway_reconciler_and_monitoring_only():
    policy = named("NetworkPolicy", "pools", "ft-serving")["spec"]
    doors = [source.get("podSelector", source.get("namespaceSelector")) for source in policy["ingress"][0]["from"]]
    assert [next(iter(door["matchLabels"].values())) for door in doors] == ["ft-gateway", "ft-fleet", "monitoring"]
