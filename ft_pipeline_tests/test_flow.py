"""The whole road, from dirty rows to a served adapter, through Dagster and the console script, with real child processes."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from ft_pipeline import definitions, resources
from ft_pipeline.cli import launch
from ft_pipeline_tests import road

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ASSETS = {
    "raw_dataset", "pinned_base", "base_model", "curated_dataset", "packed_shards", "reference_logprobs", "checkpoints", "adapter",
    "eval_report", "registered_model", "deployment",
}  # fmt: skip
TRAINED = {"checkpoints", "adapter", "eval_report", "registered_model", "deployment"}
JUDGED = {"eval_report", "registered_model", "deployment"}


@pytest.fixture
def house(finished_run: Path, typed) -> resources.House:
    """The house over this test's copy of the finished home."""
    opened = resources.open_house()
    yield opened
    opened.catalog.close()


def run_again(house: resources.House) -> launch.Launched:
    return launch.launch(house, resources.find_recipe(house.settings, "router"))


def materializations(house: resources.House) -> dict[str, list[dg.AssetMaterialization]]:
    """Asset -> what Dagster has of it, newest first."""
    with dg.DagsterInstance.from_config(str(house.settings.dagster_home)) as instance:
        found = {name: instance.fetch_materializations(dg.AssetKey(name), limit=20).records for name in ASSETS}
    return {name: [r.asset_materialization for r in records] for name, records in found.items()}


def reused(house: resources.House) -> dict[str, bool]:
    """Asset -> what its newest materialization says of itself."""
    return {
        n: bool(m[0].metadata["reused"].value) for n, m in materializations(house).items() if "reused" in m[0].metadata
    }


def heads(house: resources.House) -> dict[str, str]:
    return {asset: ref.digest for asset, ref in house.catalog.heads(road.KEY).items()}


def traces_of_work(home: Path) -> set[tuple[str, int]]:
    """Every file below `work/runs` and when it was written: a child process cannot run without a trace there."""
    return {(str(p), p.stat().st_mtime_ns) for p in (home / "work").rglob("*") if p.is_file()}


def planned(typed) -> dict[str, str]:
    answer = typed("plan", "router", "--json")
    assert answer.code == 0, answer.err
    return {step["asset"]: step["state"] for step in json.loads(answer.out)["steps"]}


def test_one_run_makes_every_asset_once_and_ends_in_production(house, finished_run):
    ended = json.loads((finished_run / "ended.json").read_text())
    assert ended["code"] == 0, ended["stderr"]
    assert "Traceback" not in ended["stderr"]
    made = materializations(house)
    assert {spec.key.to_user_string() for spec in definitions.build().resolve_all_asset_specs()} == ASSETS | {
        "bump_status",
        "exported_model",
    }
    assert {name: len(found) for name, found in made.items()} == dict.fromkeys(ASSETS, 1)
    assert {m[0].partition for m in made.values()} == {road.KEY}
    versions = {n: m[0].tags["dagster/data_version"] for n, m in made.items()}
    live = house.store.recorded(house.catalog.head(road.KEY, "base_model"))
    of_their_own = {"base_model": live.config["content"], "reference_logprobs": "not needed"}
    assert versions == heads(house) | of_their_own, "of the live base it is the revision"
    model = house.catalog.model(f"{road.KEY}:production")
    assert (model.label, model.stage) == ("acme/router@1", "production")
    assert model.adapter_digest == heads(house)["adapter"]
    assert [v.label for pool in house.catalog.pools_of(model.id) for v in house.catalog.deployed(pool)] == [model.label]


def test_the_summary_tells_what_became_of_the_rows(finished_run):
    said = json.loads((finished_run / "ended.json").read_text())["stdout"]
    assert "306 in, 300 kept, 6 dropped" in said
    for reason in ("not_json", "role_order", "control_token", "empty_turn", "exact_duplicate", "near_duplicate"):
        assert f"{reason} 1" in said
    assert "PASS" in said and "acme/router@1  stage production" in said
    assert "raw_dataset" in said and "ft-pipeline chat acme/router" in said


def test_a_second_run_reuses_everything_and_starts_no_child(house, finished_run, typed):
    before, work = heads(house), traces_of_work(finished_run)
    assert set(planned(typed).values()) == {"reuse"}
    again = run_again(house)
    assert again.passed and heads(house) == before
    assert traces_of_work(finished_run) == work
    assert len(house.catalog.models()) == 1
    found = reused(house)
    assert found == dict.fromkeys(found, True) and len(found) >= 9


def test_another_learning_rate_recomputes_from_the_checkpoints_on(house, finished_run, typed):
    before = heads(house)
    road.write_recipe(finished_run, finetune__learning_rate=0.01)
    assert {asset for asset, state in planned(typed).items() if state == "compute"} == TRAINED
    again = run_again(house)
    assert again.passed
    changed = {asset for asset, digest in heads(house).items() if digest != before[asset]}
    assert changed == TRAINED
    labels = [(v.label, v.stage) for v in house.catalog.models()]
    assert sorted(labels) == [("acme/router@1", "archived"), ("acme/router@2", "production")]
    assert set(planned(typed).values()) == {"reuse"}


def test_a_stricter_policy_judges_again_and_refuses_with_the_reason(house, finished_run, typed):
    before = heads(house)
    road.write_recipe(finished_run, gate__policy="staging")
    assert {asset for asset, state in planned(typed).items() if state == "compute"} == JUDGED
    answer = typed("run", "router")
    assert answer.code == 3 and "Traceback" not in answer.err
    assert "acme/router was not promoted" in answer.err and "INCONCLUSIVE" in answer.err
    assert "fewer than the 200 that a PASS needs" in " ".join(answer.err.split())
    assert "Cure: `ft-pipeline report acme/router`" in answer.err
    changed = {asset for asset, digest in heads(house).items() if digest != before[asset]}
    assert changed == {"eval_report"}
    assert [v.label for v in house.catalog.models()] == ["acme/router@1"]
    assert len(road.artifact_folders(finished_run, "checkpoints")) == 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("raw_dataset", "files/rows.jsonl"),
        ("curated_dataset", "train.parquet"),
        ("curated_dataset", "ledger.parquet"),
        ("packed_shards", "train-00000.parquet"),
        ("adapter", "adapter_model.safetensors"),
        ("base_model", "model.safetensors"),
        ("eval_report", "verdicts.json"),
        ("registered_model", "statement.json"),
        ("registered_model", "manifest.json"),
    ],
)
def test_verify_names_the_file_of_one_flipped_byte(finished_run, typed, kind, name):
    assert typed("verify", road.KEY).code == 0
    path = road.artifact_folders(finished_run, kind)[0] / name
    whole = path.read_bytes()
    road.flip_byte(path)
    answer = typed("verify", road.KEY)
    assert answer.code == 4 and "Traceback" not in answer.err
    assert name in answer.err and kind in answer.err and "Cure:" in answer.err
    path.write_bytes(whole)
    assert typed("verify", road.KEY).code == 0


def test_nothing_is_built_on_a_flipped_byte(finished_run, typed):
    road.flip_byte(road.artifact_folders(finished_run, "packed_shards")[0] / "train-00000.parquet")
    road.write_recipe(finished_run, finetune__learning_rate=0.01)
    answer = typed("run", "router")
    assert answer.code == 4 and "train-00000.parquet was changed" in answer.err
    assert len(road.artifact_folders(finished_run, "checkpoints")) == 1


def test_what_was_deleted_is_made_again_with_the_same_digests(house, finished_run, typed):
    """The cure that a damaged artifact comes with; training itself is in cli/test_interrupt.py."""
    before = heads(house)
    kinds = {path.parent.parent.name for path in (finished_run / "store").glob("*/*/*/manifest.json")}
    road.forget(finished_run, *(kinds - {"checkpoints"}))
    assert planned(typed)["raw_dataset"] == "compute"
    assert run_again(house).passed and heads(house) == before
    assert typed("verify", road.KEY).code == 0
    assert [v.label for v in house.catalog.models()] == ["acme/router@1"]


def test_trace_of_a_row_lists_the_adapter_and_the_version(house, finished_run, typed):
    rows = pl.read_parquet(road.artifact_folders(finished_run, "curated_dataset")[0] / "train.parquet")
    answer = typed("trace", rows["row_id"][0])
    assert answer.code == 0
    assert f"adapter {heads(house)['adapter'][:12]} trained on it, newest of acme/router" in answer.out
    assert "registered as acme/router@1 (production)" in answer.out
    as_json = json.loads(typed("trace", rows["row_id"][0], "--json").out)
    assert as_json["adapters"][0]["versions"] == ["acme/router@1 (production)"]


def test_trace_of_a_dropped_row_says_why_and_no_adapter(finished_run, typed):
    ledger = pl.read_parquet(road.artifact_folders(finished_run, "curated_dataset")[0] / "ledger.parquet")
    (row_id,) = ledger.filter(pl.col("reason") == "control_token")["row_id"]
    answer = typed("trace", row_id)
    assert answer.code == 0
    assert "control_token" in answer.out and "no adapter was trained on it" in answer.out


def test_trace_of_the_model_goes_down_to_the_raw_bytes(finished_run, typed):
    answer = typed("trace", road.KEY)
    assert answer.code == 0
    for kind in (
        "registered_model",
        "adapter",
        "checkpoints",
        "packed_shards",
        "curated_dataset",
        "raw_dataset",
        "base_model",
        "eval_report",
    ):
        assert kind in answer.out
    node = json.loads(typed("trace", f"{road.KEY}@1", "--json").out)
    for role in ("adapter", "checkpoints", "shards", "curated", "raw"):
        node = node["parents"][role]
    assert node["kind"] == "raw_dataset" and "files/rows.jsonl" in node["files"]


def test_a_recipe_file_outside_the_folders_runs_as_well(finished_run, typed, tmp_path):
    elsewhere = tmp_path / "elsewhere.yaml"
    (finished_run / "recipes" / "router.yaml").rename(elsewhere)
    answer = typed("run", str(elsewhere), "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out[answer.out.index("{") :])["passed"]
