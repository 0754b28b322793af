"""The table of combinations: what breaks is refused with the cure, and a cell counts as tested only where a test trains it."""

from __future__ import annotations

import ast
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.artifact import checkpoints_spec
from ft_pipeline.finetune.compatibility import Cell, cell_of, refuse_incompatible, table, verdict, warning
from ft_pipeline.recipe import Lora
from ft_pipeline.recipe_reinforce import PolicyMethod
from ft_pipeline.store.manifest import Ref
from ft_pipeline.workers.job import Placement
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import test_parallel, test_zero

ROOT = Path(__file__).parents[2]


def test_a_number_of_processes_that_does_not_divide_a_step_is_refused_with_those_that_do():
    recipe = tiny.recipe(windows_per_step=12, windows_per_micro=2)
    with pytest.raises(RecipeError, match="processes 4 does not divide the 6 micro-batches") as refused:
        refuse_incompatible(recipe, Placement(processes=4, sharding="fsdp"))
    assert "processes: 3" in refused.value.cure and "1, 2, 3, 6" in refused.value.cure
    refuse_incompatible(recipe, Placement(processes=3))


@pytest.mark.parametrize(
    ("changes", "sharding", "says"),
    [
        ({"lora": Lora(rank=4, alpha=8, quantize="nf4")}, "zero3", "packed_weight"),
    ],
)
def test_what_breaks_is_refused_with_the_issue_and_the_cure(changes, sharding, says):
    with pytest.raises(RecipeError, match="refused") as refused:
        refuse_incompatible(tiny.recipe(**changes), Placement(processes=2, sharding=sharding))
    assert says in refused.value.why and "fsdp" in refused.value.cure


@pytest.mark.parametrize(
    ("place", "able"),
    [
        ({"sharding": "fsdp", "processes": 2, "offload": "optimizer"}, "zero3"),
        ({"sharding": "zero2", "processes": 2, "offload": "parameters"}, "zero3"),
        ({"sharding": "zero3", "offload": "optimizer"}, "processes: 2"),
    ],
)
def test_host_memory_that_nothing_would_use_is_refused(place, able):
    with pytest.raises(RecipeError, match="offload") as refused:
        refuse_incompatible(tiny.recipe(), Placement(**place))
    assert able in refused.value.cure
    refuse_incompatible(tiny.recipe(), Placement(processes=2, sharding="zero1", offload="optimizer"))


def test_one_process_has_nothing_to_share_whatever_the_placement_says():
    cell = cell_of(tiny.recipe().finetune, Placement(processes=1, sharding="zero3"))
    assert cell.sharding == "alone" and verdict(cell).state == "tested"


def test_what_no_test_trains_is_warned_about():
    section = tiny.recipe().finetune
    assert "untested combination" in str(warning(section, Placement(device="cuda")))
    assert warning(section, Placement()) is None


def test_a_placement_is_no_part_of_what_a_run_is():
    parents = {
        "shards": Ref(kind="packed_shards", fingerprint="a" * 64, digest="b" * 64),
        "base": Ref(kind="base_model", fingerprint="c" * 64, digest="d" * 64),
    }
    config = checkpoints_spec(tiny.recipe().finetune, **parents).config
    assert not {"processes", "sharding", "placement"} & set(config)


def test_each_tested_row_names_a_test_that_exists():
    for rule in table()["tested"]:
        path, name = rule["test"].split("::")
        names = [n.name for n in ast.parse((ROOT / path).read_text()).body if isinstance(n, ast.FunctionDef)]
        assert name in names, rule


def test_the_rows_of_several_processes_are_the_cases_that_their_tests_train():
    told = {cell: rule["test"].partition("::")[2] for rule in table()["tested"] for cell in cells(rule["when"])}
    names = {
        "test_two_processes_train_as_one_does_with_zero": test_zero.ZERO_CASES,
        "test_two_processes_train_as_one_does": test_parallel.CASES,
        "test_two_processes_train_as_one_does_by_every_method": test_parallel.MORE_CASES,
    }
    trained = {}
    for test, cases in names.items():
        for name, sharding in cases:
            for place in (Placement(), Placement(processes=2, sharding=sharding)):
                trained[cell_of(test_parallel.recipe_of(name).finetune, place)] = test
    assert {cell: test for cell, test in told.items() if test in names} == trained


def cells(when):
    """The cells that a row of the table names; it gives a value for every field."""
    lists = [value if isinstance(value, list) else [value] for value in when.values()]
    return [Cell(**dict(zip(when, values, strict=True))) for values in product(*lists)]


def test_the_methods_with_rollouts_are_all_refused_where_shards_would_hang():
    rows = [rule["when"]["method"] for rule in table()["refused"] if "method" in rule["when"]]
    assert {name for names in rows for name in names} == set(get_args(PolicyMethod))


def test_a_refused_row_says_why_where_and_what_to_do():
    assert all(rule["why"] and rule["issue"] and rule["cure"] for rule in table()["refused"])


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_name_of_replicas_does_not_matter(sharding):
    section = tiny.recipe().finetune
    none = cell_of(section, Placement(processes=2))
    assert (none == cell_of(section, Placement(processes=2, sharding=sharding))) == (sharding == "ddp")
    assert replace(none, sharding="alone") == cell_of(section, Placement())
