"""The doors of acquire and curate in a Dagster run: metadata, checks, heads, reuse."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from ft_pipeline import resources
from ft_pipeline.acquire import assets as acquire
from ft_pipeline.curate import assets as curate
from ft_pipeline.curate.consolidate import curation_of
from ft_pipeline.partitions import recipes
from ft_pipeline.recipe import BaseModel, Curate, Dataset, Finetune, Gate, Lora, Recipe, Splits

KEY = "ann/docs"
HEADER = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()


@pytest.fixture
def recipe(home, tmp_path, monkeypatch) -> Recipe:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "tokenizer.json").write_text('{"added_tokens": [{"content": "<|end|>", "special": true}]}')
    (base / "model.safetensors").write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + b"a")
    rows = [{"prompt": f"question {i} of {i * i}", "completion": f"answer {i * 7}"} for i in range(40)]
    rows.append({"prompt": "say <|end|>", "completion": "x"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lora = Lora(rank=2, alpha=4)
    made = Recipe(
        tenant="ann",
        name="docs",
        base_model=BaseModel(uri=str(base)),
        dataset=Dataset(uri=str(tmp_path / "rows.jsonl"), licence="CC0-1.0"),
        curate=Curate(splits=Splits(validation=0.2, holdout=0.2)),
        finetune=Finetune(
            method="sft", lora=lora, learning_rate=1e-3, epochs=1, windows_per_step=1, windows_per_micro=1
        ),
        gate=Gate(policy="default"),
    )
    monkeypatch.setattr(resources, "find_recipe", lambda _settings, _name: made)
    return made


def materialize(house):
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(recipes.name, [KEY])
    doors = [acquire.raw_dataset, acquire.pinned_base, acquire.base_model, curate.curated_dataset]
    return dg.materialize(doors, partition_key=KEY, instance=instance, resources=resources.build(house))


@pytest.mark.slow
def test_the_doors_record_heads_metadata_and_checks(house, recipe):
    result = materialize(house)
    assert result.success
    heads = house.catalog.heads(KEY)
    planned = curation_of(recipe, raw=heads["raw_dataset"], base=heads["pinned_base"], store=house.store).spec()
    assert planned.fingerprint == heads["curated_dataset"].fingerprint
    assert set(house.catalog.heads(KEY)) == {"raw_dataset", "pinned_base", "base_model", "curated_dataset"}
    metadata = result.asset_materializations_for_node("curated_dataset")[0].metadata
    assert metadata["rows_in"].value == 41
    assert metadata["dagster/row_count"].value == metadata["rows_kept"].value
    assert metadata["reused"].value is False
    for name in ("dropped", "lengths"):
        assert "data:image/png;base64," in metadata[name].value
    assert "control_token" in metadata["reasons"].value
    assert "No filter found anything" in metadata["flags"].value and "sources" not in metadata
    assert "names no benchmark" in metadata["contaminated_items"].value and metadata["safety_share"].value == 0
    assert {e.check_name: e.passed for e in result.get_asset_check_evaluations()} == {
        "rows_kept": True,
        "no_leak_between_splits": True,
        "ledger_adds_up": True,
    }
    raw = result.asset_materializations_for_node("raw_dataset")[0]
    assert raw.metadata["licence"].value == "CC0-1.0"
    assert raw.tags["dagster/data_version"] == house.catalog.head(KEY, "raw_dataset").digest


@pytest.mark.slow
def test_a_second_run_reuses_and_says_so(house, recipe):
    materialize(house)
    before = house.catalog.heads(KEY)
    result = materialize(house)
    assert house.catalog.heads(KEY) == before
    for name in before:
        assert result.asset_materializations_for_node(name)[0].metadata["reused"].value is True


@pytest.mark.slow
def test_the_pin_holds_when_the_base_moves(house, recipe, tmp_path):
    materialize(house)
    pinned, curated = (house.catalog.head(KEY, name) for name in ("pinned_base", "curated_dataset"))
    (tmp_path / "base" / "model.safetensors").write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + b"b")
    materialize(house)
    assert house.catalog.head(KEY, "pinned_base") == pinned
    assert house.catalog.head(KEY, "base_model") != pinned
    assert house.catalog.head(KEY, "curated_dataset") == curated
