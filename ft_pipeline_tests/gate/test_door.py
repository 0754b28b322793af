"""The door: a failed gate is seen on the check, stops what comes after it, and leaves the report in place."""

from dataclasses import asdict, replace

import dagster as dg
import pytest
import yaml

from ft_pipeline.gate.artifact import read_report
from ft_pipeline.gate.assets import eval_report
from ft_pipeline.partitions import EVAL_REPORT, recipes
from ft_pipeline.workers.job import Placement

KEY = "demo/x"


@dg.asset(deps=[EVAL_REPORT], partitions_def=recipes)
def after(context: dg.AssetExecutionContext) -> None:
    """Stands for registration."""


@pytest.fixture
def materialize(house, home, publish, base_folder, adapter_folders, curated, monkeypatch, tmp_path):
    """Materializes the report and what comes after it for an adapter under a gate section."""

    def made(gate, adapter: str):
        recipe = {
            "tenant": "demo", "name": "x", "base_model": {"uri": "home://base"}, "dataset": {"uri": "home://rows.jsonl"},
            "finetune": {
                "method": "sft", "lora": None, "learning_rate": 0.1, "epochs": 1, "windows_per_step": 1, "windows_per_micro": 1
            },
            "gate": asdict(gate) | {"benchmarks": [asdict(b) for b in gate.benchmarks]},
        }  # fmt: skip
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / "recipes/x.yaml").write_text(yaml.safe_dump(recipe))
        local = replace(
            house,
            settings=replace(home, recipe_folders=(tmp_path / "recipes",), mlflow_uri="off"),
            placement=Placement(threads=1),
        )
        local.catalog.set_head(KEY, "base_model", publish("base_model", base_folder))
        local.catalog.set_head(KEY, "adapter", publish("adapter", adapter_folders[adapter]))
        local.catalog.set_head(KEY, "curated_dataset", curated)
        instance = dg.DagsterInstance.ephemeral()
        instance.add_dynamic_partitions("recipes", [KEY])
        result = dg.materialize(
            [eval_report, after], partition_key=KEY, instance=instance, resources={"house": local}, raise_on_error=False
        )
        return result, local

    return made


@pytest.mark.slow
def test_a_gate_that_fails_says_why_and_stops_registration_and_is_not_computed_twice(materialize, gate) -> None:
    wanted = replace(gate, policy="staging")
    result, house = materialize(wanted, "zero")
    check = result.get_asset_check_evaluations()[0]
    assert not check.passed and check.blocking and check.severity is dg.AssetCheckSeverity.ERROR
    # an adapter that changes nothing gains nothing: the holdout must stop it
    assert check.description.startswith("Stopped by holdout (FAIL): ")
    assert {r.data["gate"]: r.data["verdict"] for r in check.metadata["gates"].records}["letters"] == "PASS"
    assert check.metadata["forest"].value.startswith("![gates](data:image/png;base64,")
    assert not result.success
    assert {e.asset_key.to_user_string() for e in result.get_asset_materialization_events()} == {"eval_report"}
    told = result.get_asset_materialization_events()[0].materialization.metadata
    assert told["notified"].value == "in the log" and told["mlflow run"].value.startswith(
        "not mirrored: FT_MLFLOW is off"
    )
    report = read_report(house.store.fetch(house.catalog.head(KEY, "eval_report")))
    assert report.verdict == "FAIL" and report.policy == "staging"
    result, _ = materialize(wanted, "zero")
    metadata = result.get_asset_materialization_events()[0].materialization.metadata
    assert metadata["reused"].value is True and metadata["letters difference"].value == 0.0
    assert "notified" not in metadata, "a tenant is told once of a report"
