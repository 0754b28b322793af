"""What is refused before anything is computed, and the names that go into an adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.artifact import base_name, checkpoints_spec, refuse_misfit, refuse_unsupported
from ft_pipeline.recipe import Distill, Lora, Preference, RewardModel
from ft_pipeline_tests import tiny


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "dpo"}, "method dpo needs finetune.preference"),
        ({"preference": Preference(beta=0.1)}, "preference belongs to dpo, simpo, orpo, kto, not to sft"),
        (
            {"method": "simpo", "preference": Preference(beta=2.0, reference="ab")},
            "reference ab belongs to dpo, kto, not to simpo",
        ),
        ({"method": "dpo", "preference": Preference(beta=0.1, gamma=1.0)}, "gamma 1.0 belongs to simpo, not to dpo"),
        ({"method": "dpo", "preference": Preference(beta=0.1, loss="kto")}, "kto is not a loss of dpo"),
        ({"method": "kto", "preference": Preference(beta=0.1, loss="ipo")}, "ipo is not a loss of kto"),
        (
            {"method": "dpo", "preference": Preference(beta=0.1, label_smoothing=0.1)},
            "does not change the loss sigmoid",
        ),
        ({"method": "dpo", "preference": Preference(beta=0.1, loss="exo_pair")}, "needs a label_smoothing above 0"),
        ({"method": "distill"}, "method distill needs finetune.distill"),
        ({"method": "sft", "reward": RewardModel()}, "reward belongs to reward, not to sft"),
        ({"epochs": 0}, "at least 1"),
        ({"warmup_share": 1.0}, "below 1"),
        ({"lora": Lora(rank=8, alpha=16, targets=("q_proj", "lm_head"))}, "head or the embedding"),
        ({"lora": Lora(rank=0, alpha=16)}, "rank 0"),
        ({"lora": Lora(rank=8, alpha=16, dropout=1.0)}, "dropout 1.0"),
    ],
)
def test_what_this_version_cannot_train_is_refused_with_the_reason(changes, says):
    with pytest.raises(RecipeError, match=says):
        refuse_unsupported(tiny.recipe(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": None},
        {"method": "cpt"},
        {"lora": Lora(rank=8, alpha=16, dropout=0.1)},
        {"method": "reward"},
        {"method": "dpo", "preference": Preference(beta=0.1, loss="robust", label_smoothing=0.1)},
        {"method": "kto", "preference": Preference(beta=0.1, undesirable_weight=2.0)},
        {"method": "distill", "distill": Distill(teacher="ab", alpha=0.5)},
    ],
)
def test_what_it_can_train_is_not(changes):
    refuse_unsupported(tiny.recipe(**changes))


def test_a_dataset_of_preferences_is_not_trained_as_windows(road):
    turns = tiny.chat_rows(9)[0]["messages"]
    bad = [{"role": "assistant", "content": "no"}]
    rows = [{"prompt": [{"role": "user", "content": f"{n}?"}], "chosen": turns[1:2], "rejected": bad} for n in range(9)]
    shards = tiny.publish_shards(road.store, tiny.publish_curated(road.store, rows, shape="preference"), road.base)
    with pytest.raises(RecipeError, match=r"rows of kind pair, finetune\.method sft trains on windows") as refused:
        refuse_misfit(tiny.recipe().finetune, shards=shards, base=road.base)
    assert "method: dpo or simpo or orpo or reward" in refused.value.cure
    kto = tiny.recipe(method="kto", preference=Preference(beta=0.1)).finetune
    with pytest.raises(RecipeError, match="trains on rows of kind labelled"):
        refuse_misfit(kto, shards=shards, base=road.base)


def test_windows_are_not_compared(road):
    dpo = tiny.recipe(method="dpo", preference=Preference(beta=0.1)).finetune
    with pytest.raises(
        RecipeError, match=r"holds packed windows, finetune\.method dpo trains on rows of kind pair"
    ) as refused:
        refuse_misfit(dpo, shards=road.shards, base=road.base)
    assert "layout preference" in refused.value.cure


def test_fewer_windows_than_one_step_are_refused(road):
    with pytest.raises(RecipeError, match="windows_per_step 4096 is more than the"):
        refuse_misfit(tiny.recipe(windows_per_step=4096).finetune, shards=road.shards, base=road.base)


def test_every_field_of_the_section_and_every_parent_changes_the_fingerprint(road):
    section = tiny.recipe().finetune
    parents = {"shards": road.shards.ref, "base": road.base.ref}
    specs = [
        checkpoints_spec(section, **parents),
        checkpoints_spec(replace(section, seed=1), **parents),
        checkpoints_spec(replace(section, learning_rate=2e-2), **parents),
        checkpoints_spec(section, shards=road.shards.ref, base=replace(road.base.ref, digest="0" * 64)),
    ]
    assert len({spec.fingerprint for spec in specs}) == 4


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("hf://meta-llama/Llama-3.1-8B@main", "meta-llama/Llama-3.1-8B"),
        ("home://bases/tiny", "tiny"),
        ("s3://bucket/models/tiny/", "tiny"),
        ("/models/tiny", "tiny"),
    ],
)
def test_a_base_is_named_without_its_location(uri, name):
    assert base_name(uri) == name
