"""What a plan says against the store: what is refused, reused and computed, and where its numbers come from. With real runs: test_flow."""

from __future__ import annotations

import json

import pytest

from ft_pipeline import planner, recipe
from ft_pipeline.errors import NotFoundError, RecipeError
from ft_pipeline.planning.shapes import PUBLIC
from ft_pipeline.planning.sources import Wish
from ft_pipeline_tests import road, tiny


@pytest.fixture
def found(home):
    """A recipe whose places exist."""
    folder = home.home / "bases" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    road.write_rows(home.home / "rows.jsonl", road.clean_rows(30))
    return lambda **changes: recipe.parse(road.document(**changes), origin="test")


def test_an_empty_store_has_everything_to_compute(house, found):
    made = planner.plan(house, found())
    assert {step.state for step in made.steps} == {"compute"}
    assert (made.optimizer_steps, made.estimate, made.shape_from) == (None, None, None)


def test_a_base_model_on_this_machine_gives_its_shape_and_the_raw_rows_their_number(house, found, home):
    tiny.base_folder(home.home / "bases" / "tiny")
    made = planner.plan(house, found())
    assert made.shape_from == str(home.home / "bases" / "tiny" / "config.json")
    assert made.estimate.parameters == 98_624
    assert "30 rows (counted in the raw files)" in made.estimate.assumptions[0]


def test_a_public_name_needs_no_download(house, found):
    made = planner.plan(house, found(base_model__uri="hf://meta-llama/Llama-3.1-8B-Instruct"))
    assert made.shape_from == "Llama-3.1-8B" and made.estimate.parameters == 8_030_261_248


def test_with_the_number_of_rows_nothing_has_to_be_there(house, found):
    away = found(dataset__uri="home://gone.jsonl", base_model__uri="hf://Qwen/Qwen2.5-7B-Instruct")
    with pytest.raises(NotFoundError, match=r"gone\.jsonl"):
        planner.plan(house, away)
    made = planner.plan(house, away, Wish(rows=50_000, row_tokens=200))
    assert made.estimate.tokens == 35_000 * 200 * 4
    assert "50,000 rows (as you say) of 200 tokens (as you say)" in made.estimate.assumptions[0]


def test_a_config_of_another_form_or_no_json_is_told(house, found, home):
    config = home.home / "bases" / "tiny" / "config.json"
    for content in ('{"n_embd": 768}', '{"hidden_size": "x"}', json.dumps({"hidden_size": 1})):
        config.write_text(content)
        assert planner.plan(house, found()).estimate is None


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


def test_the_price_book_is_the_one_that_is_named(house, found, home, monkeypatch):
    from dataclasses import replace

    from ft_pipeline.settings import PACKAGE

    text = (PACKAGE / "planning" / "prices.yaml").read_text()
    own = home.home / "prices.yaml"
    own.write_text(text.replace("spot: 1.99", "spot: 0.01"))
    base = found(base_model__uri="hf://mistralai/Mistral-7B-v0.1")
    mine = planner.plan(replace(house, settings=replace(home, prices=own)), base).estimate
    theirs = planner.plan(house, base).estimate
    assert mine.best.gpu == "H100" and mine.best.spot < theirs.best.spot / 10


def test_every_public_name_is_found_by_itself():
    from ft_pipeline.planning.shapes import public_shape

    assert [public_shape(f"hf://someone/{name}")[0] for name in PUBLIC] == list(PUBLIC)
