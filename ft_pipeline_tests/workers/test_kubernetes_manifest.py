"""What a job becomes in a cluster: the same bytes each time, what a server accepts, and placements that are refused before."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ft_pipeline.errors import RecipeError, UserError
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.kubernetes.launcher import exit_code_of, once_published
from ft_pipeline.workers.kubernetes.manifest import job_name, manifests, shape
from ft_pipeline.workers.kubernetes.profile import BARE, Profile, Queue, Toleration
from ft_pipeline.workers.placed import cluster_profile, placement_of, read_placement
from ft_pipeline_tests.workers.fake_cluster import Refused
from ft_pipeline_tests.workers.fake_cluster_rules import refuse_invalid
from ft_pipeline_tests.workers.scenes import counting

ISSUE = {"kind": "kubernetes", "gpu": "h100-80gb", "nodes": 2, "spot": True}
CLOUD = replace(
    BARE, name="cloud", spot_label=("capacity", "spot"), spot_tolerations=(Toleration(key="spot", value="true"),),
    fabric={"vpc.amazonaws.com/efa": 4}, fabric_environment={"FI_PROVIDER": "efa"}, queue=Queue(name="gpu", priority="low"),
)  # fmt: skip


def rendered(home, placement=None, profile: Profile = CLOUD, **more):
    job = counting(home)
    return manifests(job, placement or placement_of(ISSUE), profile, **more)


def pod(made) -> dict:
    return made[0]["spec"]["template"]["spec"]


def test_the_placement_of_the_issue_is_what_an_engineer_would_sign(home):
    job, service, config = made = rendered(home)
    spec, trainer = job["spec"], pod(made)["containers"][0]
    assert [m["kind"] for m in made] == ["Job", "Service", "ConfigMap"]
    assert {m["metadata"]["name"] for m in made} == {job_name(counting(home))}
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"], spec["podReplacementPolicy"]) == (3, 0, "Failed")
    assert "backoffLimit" not in spec
    assert [r["action"] for r in spec["podFailurePolicy"]["rules"]] == ["FailJob", "Ignore", "Ignore"]
    assert trainer["resources"]["requests"]["nvidia.com/gpu"] == trainer["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert trainer["resources"]["limits"]["vpc.amazonaws.com/efa"] == "4"
    wanted = pod(made)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expressions = wanted["nodeSelectorTerms"][0]["matchExpressions"]
    assert expressions[0]["values"] == ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe"]
    assert expressions[1] == {"key": "capacity", "operator": "In", "values": ["spot"]}
    assert pod(made)["securityContext"]["runAsNonRoot"] and trainer["securityContext"]["readOnlyRootFilesystem"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert json.loads(config["data"]["job.json"])["placement"]["nodes"] == 2
    assert all(name.count("/") == 0 or name.startswith("/") for name in ("/dev/shm", "/cache"))
    for m in made:
        refuse_invalid(m["kind"].lower() + "s", m)


def test_the_same_job_gives_the_same_bytes_and_another_placement_the_same_name(home):
    assert json.dumps(rendered(home)) == json.dumps(rendered(home))
    other = rendered(home, placement_of({"kind": "kubernetes", "gpu": "a100-80gb"}))
    assert other[0]["metadata"]["name"] == rendered(home)[0]["metadata"]["name"]
    assert len(job_name(counting(home))) <= 61


def test_on_demand_keeps_spot_nodes_away_and_does_not_tolerate_their_taint(home):
    made = rendered(home, market="on-demand")
    wanted = pod(made)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert wanted["nodeSelectorTerms"][0]["matchExpressions"][1]["operator"] == "NotIn"
    assert "spot" not in [t["key"] for t in pod(made)["tolerations"]]
    assert "spot" in [t["key"] for t in pod(rendered(home))["tolerations"]]


def test_a_cpu_placement_asks_for_no_gpu_and_gets_no_spot_where_the_cluster_has_none(home):
    made = rendered(home, Placement(worker="kubernetes", threads=3, spot=True), BARE)
    resources = pod(made)["containers"][0]["resources"]
    assert resources["requests"]["cpu"] == "3" and not [n for n in resources["limits"] if "/" in n]
    assert made[0]["metadata"]["annotations"]["ft-pipeline/market"] == "on-demand" and "affinity" not in pod(made)


def test_only_training_spreads_over_nodes_and_only_work_on_a_model_gets_a_gpu(home):
    place, job = placement_of(ISSUE), counting(home)
    of = {
        k: shape(replace(job, spec=replace(job.spec, kind=k)), place)
        for k in ("checkpoints", "eval_report", "packed_shards")
    }
    assert (of["checkpoints"].nodes, of["eval_report"].nodes, of["packed_shards"].nodes) == (2, 1, 1)
    assert (of["eval_report"].device, of["packed_shards"].device) == ("cuda", "cpu")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({**ISSUE, "gpu": "h100-80g"}, "did you mean h100-80gb"),
        ({**ISSUE, "gpus": 2}, "did you mean gpu"),
        ({**ISSUE, "kind": "kubernets"}, "placement.worker: Input should be 'local' or 'kubernetes'"),
        ({**ISSUE, "nodes": 0}, "must be at least 1"),
        ({**ISSUE, "nodes": "two"}, "placement.nodes"),
        ({"kind": "local", "nodes": 2}, "placement.nodes is set and worker is local"),
        ({"kind": "local", "spot": True}, "placement.spot is set and worker is local"),
        ({**ISSUE, "device": "cpu"}, "with device cpu"),
    ],
)
def test_a_placement_that_is_nowhere_is_refused_with_the_nearest_name(document, says):
    with pytest.raises(RecipeError, match=says):
        placement_of(document)


def test_a_gpu_that_the_profile_has_no_label_for_is_refused(home):
    with pytest.raises(RecipeError, match="profile small has no label for GPU 'h100-80gb'"):
        rendered(home, profile=replace(CLOUD, name="small", gpu_values={"l40s-48gb": ("NVIDIA-L40S",)}))
    with pytest.raises(RecipeError, match="must be more than shutdown_seconds"):
        replace(BARE, grace_seconds=30)


def test_the_settings_name_cluster_image_and_placement(home, tmp_path, monkeypatch):
    from ft_pipeline.resources import open_house

    with pytest.raises(UserError, match="a folder of this machine"):
        cluster_profile(home)
    there = replace(home, store_uri="s3://bucket/x", image="repo@sha256:1", namespace="team", s3_endpoint="http://s3")
    profile = cluster_profile(there)
    assert (profile.namespace, profile.image, profile.environment["FT_STORE"]) == (
        "team",
        "repo@sha256:1",
        "s3://bucket/x",
    )
    assert profile.environment["FT_S3_ENDPOINT"] == "http://s3"
    with pytest.raises(UserError, match="did you mean bare"):
        cluster_profile(replace(there, cluster="bear"))
    (tmp_path / "place.yaml").write_text(json.dumps({"placement": ISSUE}))
    assert read_placement(tmp_path / "place.yaml").nodes == 2
    monkeypatch.setenv("FT_PLACEMENT", str(tmp_path / "place.yaml"))
    house = open_house()
    assert house.placement.worker == "kubernetes" and house.placement.gpu == "h100-80gb"
    house.catalog.close()


@pytest.mark.parametrize(
    ("codes", "code"),
    [([75, 143], 75), ([-15, 75], 75), ([1, 42], 42), ([42, -9], 42), ([75, 1], 1), ([-9], 1), ([5, 1], 5), ([], 1)],
)
def test_one_exit_code_stands_for_all_processes_of_a_node(codes, code):
    assert exit_code_of(codes) == code


def test_an_index_has_succeeded_only_when_the_artifact_is_there(home, store):
    job = counting(home)
    assert once_published(job, seconds=0.1) == 75
    with store.publish(job.spec) as draft:
        (draft.folder / "sums.json").write_text("[]")
    assert once_published(job, seconds=0.1) == 0


def test_the_fake_server_refuses_what_a_real_one_refuses(home):
    def broken(change) -> str:
        made = json.loads(json.dumps(rendered(home)[0]))
        change(made)
        with pytest.raises(Refused) as refused:
            refuse_invalid("jobs", made)
        assert refused.value.code == 422
        return refused.value.message

    def rule(made, number=0):
        return made["spec"]["podFailurePolicy"]["rules"][number]["onExitCodes"]

    assert "restartPolicy" in broken(lambda m: m["spec"]["template"]["spec"].update(restartPolicy="Always"))
    assert "must not be 0" in broken(lambda m: rule(m).update(values=[0]))
    assert "ordered and unique" in broken(lambda m: rule(m, 2).update(values=[143, 75]))
    assert "containerName" in broken(lambda m: rule(m).update(containerName="other"))
    assert "RFC 1123" in broken(lambda m: m["metadata"].update(name="Not_A_Name"))
    assert "longer than 63" in broken(lambda m: m["metadata"].update(name="a" * 62))
    assert "quantities" in broken(lambda m: pod([m])["containers"][0]["resources"]["limits"].update(memory="64GiB"))
    assert "equal to request" in broken(
        lambda m: pod([m])["containers"][0]["resources"]["limits"].update({"nvidia.com/gpu": "2"})
    )
    assert "volumeMounts" in broken(lambda m: pod([m])["volumes"].pop())
    assert "podReplacementPolicy" in broken(lambda m: m["spec"].update(podReplacementPolicy="TerminatingOrFailed"))
