"""MLflow is a mirror: it follows the catalog, and when it is broken nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ft_pipeline.register import registry
from ft_pipeline.store.catalog import NewModel


@pytest.fixture
def line(catalog) -> str:
    for digit in "12":
        new = NewModel(
            tenant="acme", name="router", base_digest="a" * 64, dataset_digest="b" * 64, adapter_digest=digit * 64,
            report_digest="c" * 64, recipe_sha256="d" * 64, run_id=f"run-{digit}", code="e", lora_rank=4,
        )  # fmt: skip
        model = catalog.register(new)
        catalog.add_report(model.id, "a" * 64, "f" * 64, True, "c" * 64)
        for stage in ("dev", "staging", "production"):
            catalog.transition(model.id, stage, actor="ann", approved_by="bob", reason="test")
    return "acme/router"


@pytest.mark.slow
def test_a_broken_mlflow_is_reported_and_blocks_nothing(catalog, line, home):
    mirrored = registry.mirror(catalog, line, replace(home, mlflow_uri="nonsense://nowhere"))
    assert not mirrored.ok
    assert mirrored.text


def test_mlflow_switched_off_starts_no_child_and_is_no_fault(catalog, line, home):
    mirrored = registry.mirror(catalog, line, replace(home, mlflow_uri="off"))
    assert mirrored == registry.Mirrored(ok=True, text="not mirrored: FT_MLFLOW is off", seconds=0.0)


@pytest.mark.slow
def test_versions_tags_and_alias_follow_the_catalog(catalog, line, home):
    from mlflow.tracking import MlflowClient

    from ft_pipeline.register import promotion

    assert registry.mirror(catalog, line, home).text == "/#/models/acme.router/versions/2"
    assert registry.mirror(catalog, line, home).seconds == 0, "an unchanged line costs nothing"
    promotion.rollback(catalog, line, actor="ann", reason="test")
    assert registry.mirror(catalog, line, home).ok
    client = MlflowClient(home.mlflow_uri)
    assert {a: str(v) for a, v in client.get_registered_model("acme.router").aliases.items()} == {"production": "1"}
    tags = client.get_model_version("acme.router", "2").tags
    assert tags["ft.stage"] == "archived"
    assert tags["ft.adapter_digest"] == "2" * 64
