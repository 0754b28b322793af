"""The door of finetune over a policy recipe: refused until its reward is calibrated, then a page with what it earned and cost."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest
import yaml

from ft_pipeline import resources
from ft_pipeline.finetune import assets as finetune
from ft_pipeline.finetune.rewards.calibrate import calibrate
from ft_pipeline.recipe import identity
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import policies

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def prepared(house, tmp_path, monkeypatch):
    monkeypatch.setenv("FT_MLFLOW", "off")
    base = tiny.publish_base(house.store, tiny.base_folder(tmp_path / "base"))
    folder = tmp_path / "recipes"
    folder.mkdir()
    whole = tiny.recipe(method="grpo", reinforce=policies.plan(), windows_per_step=4, windows_per_micro=2, epochs=2)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(identity(whole)))
    house.catalog.set_head("test/tiny", "pinned_base", base)
    house.catalog.set_head("test/tiny", "packed_shards", policies.prompts(house.store, base))
    return replace(house, settings=replace(house.settings, recipe_folders=(folder,)))


def run(house) -> dg.ExecuteInProcessResult:
    doors = dg.Definitions.merge(finetune.defs, dg.Definitions(resources=resources.build(house)))
    job = dg.define_asset_job("doors", selection=dg.AssetSelection.assets("checkpoints", "adapter"))
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("recipes", ["test/tiny"])
        built = dg.Definitions.merge(doors, dg.Definitions(jobs=[job])).resolve_job_def("doors")
        return built.execute_in_process(instance=instance, partition_key="test/tiny", raise_on_error=False)


def test_a_policy_is_refused_until_its_reward_is_calibrated_and_shows_what_it_earned(prepared):
    refused = run(prepared)
    assert not refused.success
    assert "ft-pipeline rewards calibrate" in str(refused.get_step_failure_events()[0].step_failure_data.error)
    calibrate(prepared.store, policies.plan().rewards[0], home=prepared.settings.home)
    made = run(prepared)
    assert made.success
    page = {
        name: value.value
        for event in made.get_asset_materialization_events()
        for name, value in event.materialization.metadata.items()
        if event.asset_key.to_user_string() == "checkpoints"
    }
    assert page["policy curves"].startswith("![") and page["completions"].startswith("| reward | tokens |")
    assert page["completions_kept"] == page["steps"] * 16
    assert page["rollout_bytes_per_step"] > 0 and page["storage_ratio_to_sft"] > 1
    assert prepared.catalog.ref(page["rollouts"]).kind == "rollouts"
