"""Sweep files and their trials: strict, whole, the same whatever the order of the lines, and no variant trained twice."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline import recipe
from ft_pipeline.errors import RecipeError
from ft_pipeline.recipe import Recipe
from ft_pipeline.sweeps.design import MOST_TRIALS, Range, Trial, cautions, parse, trials
from ft_pipeline_tests import road

GRID = {"finetune.learning_rate": [1e-4, 3e-4], "finetune.lora.rank": [8, 16]}


def base(**changes: Any) -> Recipe:
    return recipe.parse(road.document(**changes), origin="the test")


def document(**changes: Any) -> dict[str, Any]:
    return {"recipe": "router", "method": "grid", "parameters": GRID, **changes}


def drawn(**changes: Any) -> tuple[Trial, ...]:
    return trials(parse(document(**changes), origin="the test"), base())


def chosen(found: tuple[Trial, ...]) -> list[dict[str, Any]]:
    return [dict(trial.parameters) for trial in found]


def test_a_trial_is_a_whole_recipe_named_by_its_digest():
    found = drawn()
    assert len({trial.recipe.key for trial in found}) == 4
    for trial in found:
        variant = road.document()
        variant["finetune"]["learning_rate"] = trial.parameters["finetune.learning_rate"]
        variant["finetune"]["lora"]["rank"] = trial.parameters["finetune.lora.rank"]
        expected = recipe.parse(variant, origin="the test")
        assert trial.recipe.finetune == expected.finetune and trial.recipe.curate == expected.curate
        assert trial.recipe_sha256 == recipe.recipe_sha256(expected)
        assert trial.recipe.key == f"acme/router-s-{trial.recipe_sha256[:8]}"
        assert recipe.parse(recipe.identity(trial.recipe), origin="written") == trial.recipe


VALUES = st.lists(st.integers(1, 64), min_size=1, max_size=5)


@given(ranks=VALUES, epochs=VALUES, rates=st.lists(st.floats(1e-6, 1), min_size=1, max_size=3))
def test_a_grid_is_the_product_of_its_distinct_values_each_once(ranks, epochs, rates):
    found = drawn(parameters={"finetune.lora.rank": ranks, "finetune.epochs": epochs, "finetune.learning_rate": rates})
    cells = [(p["finetune.lora.rank"], p["finetune.epochs"], p["finetune.learning_rate"]) for p in chosen(found)]
    assert sorted(cells) == sorted(itertools.product(set(ranks), set(epochs), set(rates)))
    assert not [trial for trial in found if trial.same_as]


@given(low=st.floats(1e-8, 1e3), factor=st.floats(1.001, 1e6), log=st.booleans(), seed=st.integers(0, 2**32))
def test_draws_stay_in_their_range_and_are_drawn_again_alike(low, factor, log, seed):
    ranges = {"finetune.learning_rate": {"low": low, "high": low * factor, "log": log}}
    found = drawn(method="random", trials=20, seed=seed, parameters=ranges)
    rates = [p["finetune.learning_rate"] for p in chosen(found)]
    assert all(low <= rate <= low * factor for rate in rates)
    assert found == drawn(method="random", trials=20, seed=seed, parameters=ranges)


@given(low=st.integers(1, 50), more=st.integers(1, 50), log=st.booleans(), share=st.floats(0, 1, exclude_max=True))
def test_whole_numbers_are_whole_and_both_ends_are_drawn(low, more, log, share):
    numbers = Range(low=low, high=low + more, log=log, whole=True)
    drawn_one = numbers.at(share)
    assert isinstance(drawn_one, int) and low <= drawn_one <= low + more
    assert numbers.at(0) == low and numbers.at(math.nextafter(1, 0)) == low + more


RANDOM = {
    "finetune.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "finetune.lora.rank": {"low": 2, "high": 64, "whole": True},
    "finetune.lora.alpha": [8, 16, 32],
    "finetune.schedule": ["cosine", "constant"],
}


@given(order=st.permutations(sorted(RANDOM)), turned=st.booleans(), number=st.integers(1, 12))
def test_trials_depend_neither_on_the_order_of_lines_nor_on_how_many_there_are(order, turned, number):
    said = {path: RANDOM[path][::-1] if turned and isinstance(RANDOM[path], list) else RANDOM[path] for path in order}
    whole = drawn(method="random", trials=12, seed=3, parameters=RANDOM)
    assert drawn(method="random", trials=number, seed=3, parameters=said) == whole[:number]
    if number > 3:
        assert chosen(drawn(method="random", trials=12, seed=4, parameters=said)) != chosen(whole)


@given(values=st.lists(st.sampled_from([4, 8]), min_size=2, max_size=2), number=st.integers(2, 30))
def test_equal_trials_collapse_on_the_first(values, number):
    found = drawn(method="random", trials=number, parameters={"finetune.lora.rank": values})
    first = [trial for trial in found if trial.same_as is None]
    assert len(first) == len({trial.recipe_sha256 for trial in found}) <= len(set(values))
    for trial in found:
        assert found[(trial.same_as or trial.number) - 1].parameters == trial.parameters


def test_a_drawn_learning_rate_can_be_read_out_and_the_logarithm_is_even():
    rates = [p["finetune.learning_rate"] for p in chosen(drawn(method="random", trials=400, parameters={"finetune.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}}))]  # fmt: skip
    assert all(len(f"{rate:.15g}".replace(".", "").strip("0").partition("e")[0]) <= 7 for rate in rates)
    assert 150 < sum(rate < 1e-4 for rate in rates) < 250


REFUSED = {
    "unknown key": ({"paramters": {}}, "unknown key paramters: did you mean parameters?"),
    "unknown key of a range": ({"method": "random", "trials": 2, "parameters": {"finetune.learning_rate": {"low": 1e-5, "hihg": 1}}}, "unknown key parameters.finetune.learning_rate.hihg: did you mean high?"),
    "unknown method": ({"method": "bayes"}, "method: Input should be 'grid' or 'random'"),
    "no parameters": ({"parameters": {}}, "parameters is empty"),
    "no values": ({"parameters": {"finetune.epochs": []}}, "finetune.epochs has no values"),
    "one bare value": ({"parameters": {"finetune.epochs": 3}}, "neither a list of values nor a range"),
    "grid of a range": ({"parameters": {"finetune.learning_rate": {"low": 1e-5, "high": 1e-4}}}, "a grid needs values"),
    "grid with a number": ({"trials": 3}, "trials is for random"),
    "random without": ({"method": "random"}, "trials is needed for random"),
    "too many": ({"method": "random", "trials": MOST_TRIALS + 1}, f"must be from 1 to {MOST_TRIALS}"),
    "upside down": ({"method": "random", "trials": 2, "parameters": {"finetune.learning_rate": {"low": 1.0, "high": 0.5}}}, "must be below high"),
    "log of zero": ({"method": "random", "trials": 2, "parameters": {"finetune.weight_decay": {"low": 0.0, "high": 0.5, "log": True}}}, "must be above 0 where log"),
    "half a number": ({"method": "random", "trials": 2, "parameters": {"finetune.epochs": {"low": 1.5, "high": 3.0, "whole": True}}}, "must be whole"),
    "holdout unseen": ({"objective": "holdout"}, "it needs stop: gate"),
    "misspelt path": ({"parameters": {"finetune.learing_rate": [1e-4]}}, "unknown parameter finetune.learing_rate: did you mean learning_rate?"),
    "misspelt section": ({"parameters": {"fintune.learning_rate": [1e-4]}}, "did you mean finetune?"),
    "below a number": ({"parameters": {"finetune.epochs.x": [1]}}, "finetune.epochs has no parts"),
    "below a list": ({"parameters": {"mix.name": ["a"]}}, "mix has no parts"),
    "of no weight": ({"parameters": {"description": ["a", "b"]}}, "description changes no weight"),
    "one in the other": ({"parameters": {"finetune.lora": [None], "finetune.lora.rank": [4]}}, "finetune.lora holds finetune.lora.rank"),
    "after the end": ({"parameters": {"gate.policy": ["dev"]}}, "which stop: train leaves out"),
    "a value of another type": ({"parameters": {"finetune.epochs": ["three"]}}, "trial 1 (finetune.epochs: three) is not a recipe: finetune.epochs"),
    "a value that is refused": ({"parameters": {"finetune.learning_rate": [-1.0]}}, "learning_rate -1.0 must be above 0"),
    "values that do not go together": ({"parameters": {"finetune.windows_per_step": [4, 6]}}, "windows_per_step 6 is not a multiple"),
    "a grid without end": ({"parameters": {"finetune.seed": list(range(30)), "finetune.epochs": list(range(1, 31))}}, "the grid has 900 trials"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_sweep_that_cannot_run_is_refused_with_its_place(case):
    changes, expected = REFUSED[case]
    with pytest.raises(RecipeError) as refused:
        drawn(**changes)
    assert expected in refused.value.what


def test_a_parameter_of_a_section_that_is_null_is_refused_and_whole_sections_are_values():
    said = parse(document(), origin="the test")
    with pytest.raises(RecipeError, match="lora is null in the recipe"):
        trials(said, base(finetune__lora=None))
    either = drawn(parameters={"finetune.lora": [None, {"rank": 4, "alpha": 8}]})
    assert {trial.recipe.finetune.lora is None for trial in either} == {True, False}


def test_what_makes_objectives_incomparable_is_said():
    assert cautions(parse(document(), origin="the test")) == ()
    windows = parse(document(parameters={"encode.window_tokens": [128, 256]}), origin="the test")
    assert "do not share a validation split or tokens" in cautions(windows)[0]
    picked = parse(document(objective="holdout", stop="gate"), origin="the test")
    assert "best of several draws" in cautions(picked)[0]


def test_a_number_with_an_exponent_and_no_point_is_a_number_in_yaml():
    told = recipe.document_of("a: 1e-4\nb: [3E5, -2e+3, .5e1]\nc: 1e-4x\nd: 'e5'\ne: 1.0e-4\nf: 12\n")
    assert told == {"a": 1e-4, "b": [3e5, -2e3, 5.0], "c": "1e-4x", "d": "e5", "e": 1e-4, "f": 12}
    assert json.dumps(told["f"]) == "12"
