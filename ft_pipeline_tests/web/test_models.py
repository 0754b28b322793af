"""Models by the real client: what stands behind a version, two keys for production, and that another tenant's versions do not exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.catalog import ModelVersion, NewModel
from ft_pipeline.store.manifest import Spec
from ft_pipeline.web.platform import Platform
from ft_pipeline_tests.web.offered import offer_tiny

VERDICTS = """{"verdict": "PASS", "policy": "staging", "reason": "", "gates": [
 {"name": "holdout", "kind": "holdout", "verdict": "PASS", "base": 0.2, "adapter": 0.6, "difference": 0.4},
 {"name": "mmlu", "kind": "benchmark", "verdict": "PASS", "base": 0.5, "adapter": 0.49, "difference": -0.01},
 {"name": "safety", "kind": "safety", "verdict": "PASS", "base": 1.0, "adapter": 1.0, "difference": 0.0},
 {"name": "judge", "kind": "judge", "verdict": "SKIPPED"}]}"""
As = Callable[..., TestClient]


@pytest.fixture
def home(home: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return offer_tiny(home, monkeypatch)


@dataclass(frozen=True)
class Made:
    """Puts versions into the catalog, each with an adapter, a base and a report that passed."""

    platform: Platform

    def artifact(
        self, kind: str, number: int, files: dict[str, str], *, config: Any = None, **parents: Any
    ) -> Artifact:
        spec = Spec(kind=kind, config={"n": number, **(config or {})}, parents=parents, code="c" * 64)
        with self.platform.store.publish(spec) as draft:
            for name, text in files.items():
                (draft.folder / name).write_text(text)
            draft.execution["location"] = "home://bases/tiny"
        assert draft.artifact is not None
        self.platform.catalog.index(draft.artifact.manifest)
        return draft.artifact

    def version(self, tenant: str = "acme", number: int = 1) -> ModelVersion:
        base = self.artifact("base_model", 0, {"config.json": "{}"})
        adapter = self.artifact("adapter", number, {"adapter_config.json": "{}"}, base=base.ref)
        policy = {"policy": {"required": [], "auto_promote": False}}
        report = self.artifact("eval_report", number, {"verdicts.json": VERDICTS}, config=policy, adapter=adapter.ref, base=base.ref)  # fmt: skip
        model = self.platform.catalog.register(
            NewModel(
                tenant=tenant, name="router", base_digest=base.ref.digest, dataset_digest="d" * 64, adapter_digest=adapter.ref.digest,
                report_digest=report.ref.digest, recipe_sha256="e" * 64, run_id="run", code="c" * 64, lora_rank=8, lora_alpha=16,
                lora_modules=("q_proj",),
            )
        )  # fmt: skip
        self.platform.catalog.add_report(model.id, base.ref.digest, "5" * 64, True, report.ref.digest)
        return model


@pytest.fixture
def made(platform: Platform) -> Made:
    return Made(platform)


def test_what_stands_behind_a_version(as_tenant: As, made: Made) -> None:
    version = made.version()
    found = as_tenant().get(f"/v1/models/{version.label}").json()
    told = found["platform"]
    assert (found["id"], found["object"], found["owned_by"]) == ("acme/router@1", "model", "acme")
    assert (told["base_model"], told["base_model_sha"], told["stage"]) == ("tiny", version.base_digest, "none")
    assert (told["dataset_version"], told["lora_rank"], told["lora_modules"]) == ("d" * 64, 8, ["q_proj"])
    assert Path(told["artifact_uri"]).joinpath("adapter_config.json").is_file()
    metrics = told["eval_metrics"]
    assert (metrics["verdict"], metrics["task_score"], metrics["mmlu_delta"], metrics["safety_pass"]) == (
        "PASS",
        0.6,
        -0.01,
        True,
    )


def test_lists_are_filtered_by_type_base_and_stage(as_tenant: As, made: Made) -> None:
    made.version(), made.version(number=2)
    acme = as_tenant()

    def ids(**query: str) -> list[str]:
        return [model["id"] for model in acme.get("/v1/models", params=query).json()["data"]]

    both = ["acme/router@1", "acme/router@2"]
    assert ids() == [*both, "tiny", "acme/other"]
    assert ids(type="fine-tuned") == both
    assert ids(type="base") == ["tiny", "acme/other"]
    assert ids(type="fine-tuned", base_model="tiny") == ids(base_model="acme/other") == both
    assert ids(base_model="gpt-4") == ids(stage="production") == []
    assert acme.get("/v1/models", params={"type": "x"}).status_code == 400
    assert acme.get("/v1/models/tiny").json()["platform"]["type"] == "base"


def test_another_tenants_versions_do_not_exist_and_no_answer_names_them(as_tenant: As, made: Made) -> None:
    made.version()
    other = as_tenant("other")
    assert [m["id"] for m in other.get("/v1/models", params={"type": "fine-tuned"}).json()["data"]] == []
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/history", None),
        ("POST", "/deploy", {"stage": "staging"}),
        ("POST", "/approve", {}),
        ("POST", "/rollback", {}),
    ):
        foreign = other.request(method, f"/v1/models/acme/router@1{path}", json=body)
        missing = other.request(method, f"/v1/models/other/router@1{path}", json=body)
        assert (foreign.status_code, missing.status_code) == (404, 404)
        assert foreign.text.replace("acme/", "") == missing.text.replace("other/", "")


def test_deploying_takes_the_role_and_a_version(as_tenant: As, made: Made) -> None:
    made.version()
    body = {"stage": "staging"}
    assert as_tenant("acme", ["submit"]).post("/v1/models/acme/router@1/deploy", json=body).status_code == 403
    boss = as_tenant("acme", ["approve"])
    assert boss.post("/v1/models/acme/router/deploy", json=body).status_code == 400
    assert (
        boss.post("/v1/models/acme/router@1/deploy", json={"stage": "staging", "serving_pool": "x"}).status_code == 400
    )
    done = boss.post("/v1/models/acme/router@1/deploy", json=body).json()
    assert (done["stage"], done["moved"]["from_stage"], done["moved"]["actor"]) == ("staging", "dev", "acme/ci")
    history = boss.get("/v1/models/acme/router/history").json()["data"]
    assert [move["to_stage"] for move in history] == ["staging", "dev"]


def test_a_version_that_was_never_signed_does_not_go_to_production(as_tenant: As, made: Made) -> None:
    made.version()
    boss = as_tenant("acme", ["approve"])
    refused = boss.post("/v1/models/acme/router@1/deploy", json={"stage": "production"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "gate_refused")
    assert boss.post("/v1/models/acme/router@1/approve", json={}).status_code == 400


def test_delete_is_archive(as_tenant: As, made: Made, platform: Platform) -> None:
    made.version()
    boss = as_tenant("acme", ["approve"])
    boss.post("/v1/models/acme/router@1/deploy", json={"stage": "dev"})
    assert boss.delete("/v1/models/acme/router@1").json() == {"id": "acme/router@1", "object": "model", "deleted": True}
    assert boss.get("/v1/models/acme/router@1").json()["platform"]["stage"] == "archived"
    assert "model.archive" in [line.action for line in platform.records.audit_lines(tenant="acme")]
