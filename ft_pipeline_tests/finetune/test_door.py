"""The doors of encode and finetune in one Dagster run: what a person sees on the asset pages."""

from __future__ import annotations

import dagster as dg
import pytest
import yaml

from ft_pipeline import resources
from ft_pipeline.encode import assets as encode
from ft_pipeline.finetune import assets as finetune
from ft_pipeline.recipe import identity
from ft_pipeline_tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def prepared(house, tmp_path, monkeypatch):
    """A house whose catalog has the curated rows and the base, and whose recipe folder has the recipe."""
    from dataclasses import replace

    monkeypatch.setenv("FT_MLFLOW", "off")
    base = tiny.publish_base(house.store, tiny.base_folder(tmp_path / "base"))
    curated = tiny.publish_curated(house.store, tiny.chat_rows(90), validation=10)
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(identity(tiny.recipe())))
    house.catalog.set_head("test/tiny", "pinned_base", base)
    house.catalog.set_head("test/tiny", "curated_dataset", curated)
    return replace(house, settings=replace(house.settings, recipe_folders=(folder,)))


def run(house) -> dg.ExecuteInProcessResult:
    doors = dg.Definitions.merge(encode.defs, finetune.defs, dg.Definitions(resources=resources.build(house)))
    job = dg.define_asset_job("doors", selection=dg.AssetSelection.all())
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("recipes", ["test/tiny"])
        built = dg.Definitions.merge(doors, dg.Definitions(jobs=[job])).resolve_job_def("doors")
        return built.execute_in_process(instance=instance, partition_key="test/tiny")


def metadata(result, asset: str) -> dict:
    events = [e for e in result.get_asset_materialization_events() if e.asset_key.to_user_string() == asset]
    return {name: value.value for name, value in events[0].materialization.metadata.items()}


def test_the_pages_show_windows_curve_and_proof_and_a_second_run_reuses_everything(prepared):
    first = run(prepared)
    assert first.success
    shards, checkpoints, adapter = (metadata(first, a) for a in ("packed_shards", "checkpoints", "adapter"))
    assert shards["window_fill_percent"] > 70 and 0 < shards["trained_percent"] < 50
    assert shards["samples"].startswith("![") and shards["lengths"].startswith("![")
    assert checkpoints["loss curve"].startswith("![") and checkpoints["final_loss"] < 6
    assert checkpoints["attempts"] == 1 and adapter["form"] == "LoRA adapter"
    unneeded = metadata(first, "reference_logprobs")
    assert (unneeded["needed"], unneeded["method"]) == (False, "sft")
    assert {c.check_name: c.passed for c in first.get_asset_check_evaluations()} == {
        "loss_mask": True,
        "complete": True,
        "packing_certificate": True,
    }
    second = run(prepared)
    for asset, before in (("packed_shards", shards), ("checkpoints", checkpoints), ("adapter", adapter)):
        again = metadata(second, asset)
        assert again["reused"] and not before["reused"] and again["digest"] == before["digest"]
    assert {a: r.digest for a, r in prepared.catalog.heads("test/tiny").items()}["adapter"] == adapter["digest"]
