"""`k8s render, check, diff, doctor` as a person types them, with a cluster, with half of one and without."""

from __future__ import annotations

import json

import pytest
import yaml

from ft_pipeline.settings import PROJECT
from ft_pipeline_tests import road
from ft_pipeline_tests.k8s.rendered import IMAGE
from ft_pipeline_tests.k8s.stub_server import stub_server

DEFAULT = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
"""What KUBECONFIG said when the client was imported."""
RECIPE = "llama31-8b-instruct-lora"
PLACE = ("--gpu", "h100-80gb", "--nodes", "2", "--spot", "--cluster", "eks-karpenter")


@pytest.fixture
def k8s(typed, monkeypatch, tmp_path):
    """`ft-pipeline k8s ...` with a store that pods reach, and no cluster."""
    monkeypatch.setenv("FT_STORE", "s3://acme-ft/store")
    monkeypatch.setenv("FT_IMAGE", IMAGE)
    monkeypatch.setenv("FT_CATALOG", f"sqlite:///{tmp_path / 'catalog.db'}")
    monkeypatch.setattr(DEFAULT, str(tmp_path / "none"))
    for name in ("FT_CLUSTER", "FT_NAMESPACE", "FT_PLACEMENT", "FT_QUEUE", "FT_RECIPES"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: typed("k8s", *words)


@pytest.fixture
def cluster(tmp_path, monkeypatch, k8s):
    with stub_server() as stub:
        monkeypatch.setattr(DEFAULT, str(stub.kubeconfig(tmp_path / "config")))
        stub.objects["/version"] = {"major": "1", "minor": "36+", "gitVersion": "v1.36.2"}
        yield stub


def test_the_run_of_the_issue_is_rendered_the_same_each_time_and_passes(k8s, tmp_path):
    said = k8s("render", RECIPE, *PLACE)
    assert said.code == 0 and said.err == "" and "provisional" in said.out
    job, service, config = yaml.safe_load_all(said.out)
    pod = job["spec"]["template"]["spec"]
    assert (job["kind"], service["kind"], config["kind"]) == ("Job", "Service", "ConfigMap")
    assert (
        job["metadata"]["name"] == service["metadata"]["name"] == pod["subdomain"]
        and len(job["metadata"]["name"]) <= 61
    )
    assert json.loads(config["data"]["job.json"])["facts"]["model_line"] == f"examples/{RECIPE}"
    assert "job.json: |" in said.out
    assert k8s("render", RECIPE, *PLACE).out == said.out
    (tmp_path / "run.yaml").write_text(said.out)
    checked = k8s("check", str(tmp_path / "run.yaml"))
    assert checked.code == 0 and "3 objects, nothing wrong" in checked.out
    assert k8s("check", RECIPE, *PLACE).code == 0


def test_what_the_docs_show_is_what_is_rendered(k8s):
    """The page shows the manifest without its job.json; only the hash of the code may differ between versions."""
    page = (PROJECT / "docs" / "kubernetes.md").read_text()
    shown = page[page.index("```text\napiVersion: batch/v1") + 8 :]
    documents = list(yaml.safe_load_all(shown[: shown.index("\n```")]))
    fresh = list(yaml.safe_load_all(k8s("render", RECIPE, *PLACE, "--processes", "8").out))
    name, now = documents[0]["metadata"]["name"], fresh[0]["metadata"]["name"]
    text = json.dumps(documents[:2]).replace(name, now)
    image = documents[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    before, after = json.loads(text.replace(image, IMAGE)), fresh[:2]
    for made in (before[0], after[0]):
        made["metadata"]["annotations"].pop("ft-pipeline/fingerprint")
    assert before == after


def test_a_placement_file_and_a_queue_are_read(k8s, tmp_path, monkeypatch):
    (tmp_path / "place.yaml").write_text("placement: {kind: kubernetes, gpu: a100-80gb, processes: 4}")
    monkeypatch.setenv("FT_QUEUE", "gpu:ft-urgent")
    made = yaml.safe_load(k8s("render", RECIPE, "--placement", str(tmp_path / "place.yaml")).out.split("\n---\n")[0])
    assert made["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "ft-urgent"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("render", RECIPE, "--gpu", "h100"), "did you mean h100-80gb"),
        (("render", RECIPE, "--nodes", "0"), "must be at least 1"),
        (("render", "llama31-8b-instruct-lor"), "did you mean"),
        (("render", RECIPE, "--cluster", "gkee"), "did you mean gke"),
        (("render", RECIPE, "--placement", "gone.yaml"), "gone.yaml"),
        (("doctor", "--cluster", "gkee"), "did you mean gke"),
        (("diff", RECIPE), "set KUBECONFIG"),
        (("doctor",), "set KUBECONFIG"),
    ],
)
def test_a_mistake_ends_with_its_cure_and_without_a_traceback(k8s, words, says):
    said = k8s(*words)
    assert said.code == 2 and says in said.err and "Traceback" not in said.err + said.out


def test_a_store_that_pods_cannot_reach_is_refused(k8s, monkeypatch, tmp_path):
    monkeypatch.setenv("FT_STORE", str(tmp_path / "store"))
    said = k8s("render", RECIPE)
    assert said.code == 2 and "s3://bucket/prefix" in said.err


def test_the_shipped_manifests_pass_and_a_broken_one_is_named(k8s, tmp_path):
    said = k8s("check", str(PROJECT / "k8s" / "workers" / "base"))
    assert said.code == 0
    (tmp_path / "bad.yaml").write_text("apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: x}\n")
    said = k8s("check", str(tmp_path / "bad.yaml"), "--json")
    (fault,) = [f for f in json.loads(said.out) if f["field"] == "value"]
    assert said.code == 1 and "value: 1000" in fault["cure"]
    (tmp_path / "worse.yaml").write_text("apiVersion: v1\nkind: [\n")
    assert "is no YAML" in k8s("check", str(tmp_path / "worse.yaml")).err


def test_diff_tells_what_the_cluster_has_instead(k8s, cluster):
    said = k8s("diff", RECIPE, *PLACE)
    assert said.code == 1 and said.out.count("missing") == 3
    for made in yaml.safe_load_all(k8s("render", RECIPE, *PLACE).out):
        root = "/apis/batch/v1" if made["kind"] == "Job" else "/api/v1"
        made["metadata"]["uid"], made["status"] = "filled in by the server", {}
        cluster.objects[f"{root}/namespaces/ft-train/{made['kind'].lower()}s/{made['metadata']['name']}"] = made
    said = k8s("diff", RECIPE, *PLACE)
    assert said.code == 0 and said.out.count("same") == 3
    job = next(v for k, v in cluster.objects.items() if "/jobs/" in k)
    job["spec"]["activeDeadlineSeconds"] = 60
    said = k8s("diff", RECIPE, *PLACE)
    assert (
        said.code == 1 and "-  activeDeadlineSeconds: 60" in said.out and "+  activeDeadlineSeconds: 172800" in said.out
    )
    cluster.forbidden.add(next(k for k in cluster.objects if "/jobs/" in k))
    said = k8s("diff", RECIPE, *PLACE)
    assert said.code == 2 and "no permission" in said.err


def ready(cluster) -> None:
    cluster.objects |= {
        "/api/v1/namespaces/ft-train": {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
        "/api/v1/namespaces/ft-train/serviceaccounts/ft-trainer": {},
        "/apis/scheduling.k8s.io/v1/priorityclasses/ft-train-batch": {},
        "/apis/kueue.x-k8s.io": {},
        "/api/v1/nodes": {"items": [
            {"metadata": {"labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}},
            {"metadata": {"labels": {}}, "status": {"allocatable": {"cpu": "4"}}},
        ]},
    }  # fmt: skip


def found(said) -> dict[str, list[dict[str, str]]]:
    rows: dict[str, list[dict[str, str]]] = {}
    for row in json.loads(said.out):
        rows.setdefault(row["check"], []).append(row)
    return rows


def test_the_doctor_finds_a_ready_cluster_ready(k8s, cluster):
    ready(cluster)
    said = k8s("doctor", "--json")
    rows = found(said)
    assert said.code == 0 and {r["state"] for some in rows.values() for r in some} == {"ok"}
    assert rows["GPUs"][0]["seen"] == "8 x h100-80gb" and "v1.36.2" in rows["API server"][0]["seen"]


def test_the_doctor_says_what_is_missing_and_how_to_mend_it(k8s, cluster):
    cluster.denied = {("create", "jobs"), ("get", "pods/log")}
    cluster.objects["/api/v1/namespaces/ft-train"] = {"metadata": {}}
    cluster.forbidden = {"/api/v1/nodes"}
    said = k8s("doctor", "--json")
    rows = found(said)
    assert said.code == 1
    assert (
        rows["permissions"][0]["seen"] == "may not create jobs, get pods/log"
        and "ft-orchestrator" in rows["permissions"][0]["cure"]
    )
    assert "not enforced" in rows["namespace"][0]["seen"] and "kubectl label" in rows["namespace"][0]["cure"]
    assert {r["state"] for r in rows["objects"]} == {"missing"} and rows["GPUs"][0]["state"] == "optional"
    assert all(r["cure"] for some in rows.values() for r in some if r["state"] == "missing")
    assert "Traceback" not in said.err


def test_a_queue_that_is_not_there_is_missing_only_when_it_is_asked_for(k8s, cluster, monkeypatch):
    ready(cluster)
    monkeypatch.setenv("FT_QUEUE", "gpu")
    assert [r["state"] for r in found(k8s("doctor", "--json"))["queue"]] == ["ok", "missing"]
    del cluster.objects["/apis/kueue.x-k8s.io"]
    assert [r["state"] for r in found(k8s("doctor", "--json"))["queue"]] == ["missing"]
    monkeypatch.delenv("FT_QUEUE")
    assert [r["state"] for r in found(k8s("doctor", "--json"))["queue"]] == ["optional"]


def test_the_doctor_of_a_server_that_is_too_old(k8s, cluster):
    cluster.objects["/version"] = {"major": "1", "minor": "28", "gitVersion": "v1.28.0"}
    assert "upgrade" in found(k8s("doctor", "--json"))["API server"][0]["cure"]


def test_the_doctor_of_a_server_that_does_not_answer(k8s, tmp_path, monkeypatch):
    with stub_server() as gone:
        monkeypatch.setattr(DEFAULT, str(gone.kubeconfig(tmp_path / "config")))
    said = k8s("doctor", "--json")
    rows = found(said)
    assert said.code == 1 and list(rows) == ["API server"] and "KUBECONFIG" in rows["API server"][0]["cure"]
    assert k8s("diff", RECIPE, *PLACE).code == 2


@pytest.mark.slow
def test_the_name_is_final_once_shards_and_base_are_made(finished_run, typed, monkeypatch):
    """It is the fingerprint under which the run of that home published: a Job of this name would be found again."""
    from ft_pipeline import settings
    from ft_pipeline.store.catalog import open_catalog

    catalog = open_catalog(settings.load())
    made = catalog.head(road.KEY, "checkpoints")
    catalog.close()
    monkeypatch.setenv("FT_STORE", "s3://acme-ft/store")
    said = typed("k8s", "render", road.KEY)
    assert said.code == 0, said.err
    assert "provisional" not in said.out and f"name: ft-checkpoints-{made.fingerprint[:20]}\n" in said.out
