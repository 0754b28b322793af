"""The doors of encode and finetune on a dpo recipe whose reference is another model line: measured once, a parent, and found the second time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from ft_pipeline import planner
from ft_pipeline.encode.artifact import Measure, reference_spec
from ft_pipeline.finetune.adapter import package
from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.recipe import Preference, identity
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune.test_door import metadata, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def supervised(house, base):
    """The adapter of the line acme/sft."""
    shards = tiny.publish_shards(house.store, tiny.publish_curated(house.store, tiny.chat_rows(90)), base)
    checkpoints = tiny.train_here(house.store, tiny.recipe(epochs=1), shards, base)
    adapter = package(house.store, checkpoints=checkpoints, base=base, base_uri="home://bases/tiny")
    house.catalog.set_head("acme/sft", "adapter", adapter)
    return adapter


def test_the_reference_is_measured_by_encode_and_trained_from(house, tmp_path, monkeypatch):
    monkeypatch.setenv("FT_MLFLOW", "off")
    whole = tiny.recipe(method="dpo", preference=Preference(beta=0.1, reference="acme/sft"), epochs=1)
    base = tiny.publish_base(house.store, tiny.base_folder(tmp_path / "base"))
    adapter = supervised(house, base)
    curated = tiny.publish_curated(house.store, tiny.pair_rows(72), validation=8, shape="preference")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(identity(whole)))
    house.catalog.set_head("test/tiny", "pinned_base", base)
    house.catalog.set_head("test/tiny", "curated_dataset", curated)
    house = replace(house, settings=replace(house.settings, recipe_folders=(folder,)))
    first = run(house)
    assert first.success
    measured = metadata(first, "reference_logprobs")
    assert measured["needed"] and not measured["reused"] and measured["reference"] == f"adapter {adapter.ref.digest}"
    checkpoints = house.store.fetch(house.catalog.head("test/tiny", "checkpoints"))
    shards = house.store.fetch(house.catalog.head("test/tiny", "packed_shards"))
    reference = house.store.find(reference_spec(Measure(), shards=shards, reference=adapter, base=base))
    assert (
        checkpoints.manifest.parents["reference"]
        == reference.ref
        == house.catalog.head("test/tiny", reference.ref.kind)
    )
    assert checkpoints.manifest.parents["start"] == adapter.ref
    assert abs(read_losses(checkpoints)[0]["margin"]) < 1e-6
    assert {c.kind for c in house.catalog.children(adapter.ref.digest)} == {
        reference.ref.kind,
        "checkpoints",
        "adapter",
    }
    assert planned(house, whole, shards, base, monkeypatch) == {reference.ref.kind, "checkpoints", "adapter"}
    again = run(house)
    assert metadata(again, "reference_logprobs")["reused"] and metadata(again, "checkpoints")["reused"]


def planned(house, whole, shards, base, monkeypatch) -> set[str]:
    """What a plan would reuse behind the shards, which have no raw rows in this test."""
    spec = Spec(kind="raw_dataset", config={}, parents={}, code="test")
    with house.store.publish(spec) as draft:
        (draft.folder / "rows.jsonl").write_text("{}")
    house.catalog.set_head("test/tiny", "raw_dataset", draft.artifact)
    monkeypatch.setattr(planner, "refuse_impossible", lambda *_a, **_k: None)
    monkeypatch.setattr(
        planner, "curation_of", lambda *_a, **_k: Curated(house.store.recorded(shards.manifest.parents["curated"]))
    )
    steps = planner.plan(house, whole).steps
    return {s.asset for s in steps if s.state == "reuse"} - {
        "raw_dataset",
        "pinned_base",
        "curated_dataset",
        "packed_shards",
    }


class Curated:
    """A curation that was made."""

    def __init__(self, manifest) -> None:
        self.manifest = manifest

    def spec(self):
        m = self.manifest
        return Spec(kind=m.kind, config=m.config, parents=m.parents, code=m.code)
