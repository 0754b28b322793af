"""What a plan says: published parameter counts, and exactly what a run would reuse. With real runs: test_flow."""

from __future__ import annotations

import pytest

from ft_pipeline import planner, recipe
from ft_pipeline.errors import NotFoundError, RecipeError
from ft_pipeline_tests import road, tiny

LLAMA_2_7B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32000, "num_attention_heads": 32,
    "num_key_value_heads": 32,
}  # fmt: skip
LLAMA_3_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 128256, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_3_70B = LLAMA_3_8B | {
    "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "num_attention_heads": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "rank", "expected"), [(LLAMA_2_7B, 8, 19_988_480), (LLAMA_3_8B, 16, 41_943_040), (LLAMA_3_70B, 16, 207_093_760)]
)  # fmt: skip
def test_lora_parameters_are_the_published_counts(config, rank, expected):
    assert planner.lora_parameters(planner.shape_of(config), rank) == expected


@pytest.mark.parametrize(
    ("config", "expected"), [(LLAMA_2_7B, 6_738_415_616), (LLAMA_3_8B, 8_030_261_248), (LLAMA_3_70B, 70_553_706_496)]
)  # fmt: skip
def test_parameters_of_the_whole_model_are_the_published_counts(config, expected):
    assert planner.shape_of(config)["parameters"] == expected


def test_a_config_of_another_form_has_no_shape():
    with pytest.raises(KeyError):
        planner.shape_of({"n_embd": 768})


@pytest.mark.slow
def test_counts_are_those_of_peft_on_a_real_model(tmp_path):
    import json

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny.base_folder(tmp_path / "base")
    shape = planner.shape_of(json.loads((folder / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == shape["parameters"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == planner.lora_parameters(shape, 4)


@pytest.fixture
def found(home):
    """A recipe whose places exist."""
    folder = home.home / "bases" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    road.write_rows(home.home / "rows.jsonl", road.clean_rows(3))
    return lambda **changes: recipe.parse(road.document(**changes), origin="test")


def test_an_empty_store_has_everything_to_compute(house, found):
    made = planner.plan(house, found())
    assert {step.state for step in made.steps} == {"compute"}
    assert (made.optimizer_steps, made.trained_parameters, made.memory_gib) == (None, None, None)


def test_what_cannot_be_trained_is_refused_in_the_plan(house, found):
    with pytest.raises(RecipeError):
        planner.plan(house, found(finetune__method="dpo"))


def test_what_is_missing_is_named_with_its_field(house, found):
    with pytest.raises(NotFoundError, match=r"acme/router base_model: no file or folder at home://bases/tyni"):
        planner.plan(house, found(base_model__uri="home://bases/tyni"))


def test_a_place_in_the_network_is_not_asked(house, found):
    planner.plan(house, found(base_model__uri="hf://nobody/none", dataset__uri="https://127.0.0.1:1/rows.jsonl"))


def test_a_pinned_dataset_may_be_in_the_store_alone(house, found):
    planner.plan(house, found(dataset__uri="home://gone.jsonl", dataset__revision="0" * 64))
