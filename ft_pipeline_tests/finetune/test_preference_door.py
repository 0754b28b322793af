"""The doors of encode and finetune on a dpo recipe: the reference is made on the way, indexed, a parent, and found the second time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from ft_pipeline.encode.artifact import Measure, reference_spec
from ft_pipeline.finetune.requirements import parent_specs
from ft_pipeline.recipe import Preference, identity
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune.test_door import metadata, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_door_of_checkpoints_makes_the_reference_first_and_once(house, tmp_path, monkeypatch):
    monkeypatch.setenv("FT_MLFLOW", "off")
    whole = tiny.recipe(method="dpo", preference=Preference(beta=0.1), resume_certificate=False)
    base = tiny.publish_base(house.store, tiny.base_folder(tmp_path / "base"))
    curated = tiny.publish_curated(house.store, tiny.pair_rows(72), validation=8, shape="preference")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(identity(whole)))
    house.catalog.set_head("test/tiny", "pinned_base", base)
    house.catalog.set_head("test/tiny", "curated_dataset", curated)
    house = replace(house, settings=replace(house.settings, recipe_folders=(folder,)))
    first = run(house)
    assert first.success
    checkpoints = house.store.fetch(house.catalog.head("test/tiny", "checkpoints"))
    shards = house.store.fetch(house.catalog.head("test/tiny", "packed_shards"))
    reference = house.store.find(reference_spec(Measure(), shards=shards, reference=base))
    assert checkpoints.manifest.parents["reference"] == reference.ref
    assert house.catalog.ref(reference.ref.digest[:16]) == reference.ref
    assert checkpoints.ref in house.catalog.children(reference.ref.digest)
    planned = parent_specs(whole.finetune, shards=shards, base=base, find=house.store.fetch)
    assert planned["reference"].fingerprint == reference.ref.fingerprint
    again = run(house)
    assert metadata(again, "checkpoints")["reused"]
