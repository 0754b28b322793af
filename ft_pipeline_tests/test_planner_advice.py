"""Every combination of answers gives one first advice, and every recipe that it writes can be run and planned, and fits its hardware."""

from __future__ import annotations

import itertools

import pytest
import yaml

from ft_pipeline import recipe
from ft_pipeline.finetune.artifact import refuse_unsupported
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.planning import advice
from ft_pipeline.planning.advice_recipe import Place, recipe_text
from ft_pipeline.planning.cautions import Planned, cautions
from ft_pipeline.planning.cost import Ask, micro_tokens, placements
from ft_pipeline.planning.memory import layout_of, memory
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.planning.shapes import public_shape
from ft_pipeline.planning.work import estimated
from ft_pipeline.settings import PACKAGE

ROWS = (0, 1, 49, 50, 199, 200, 999, 1_000, 9_999, 10_001, 99_999, 100_000, 5_000_000)
SPACE = [
    advice.Answers(goal=g, kind=k, rows=n, changes_often=c, hardware=h, latency=t)  # type: ignore[arg-type]
    for g, k, n, c, h, t in itertools.product(
        advice.GOALS, advice.ROWS, ROWS, (False, True), advice.HARDWARE, advice.LATENCY
    )
]
CARDS = {"24gb": "A100-40", "48gb": "L40S", "80gb": "H100"}
PRICES = read_prices(PACKAGE / "planning" / "prices.yaml")


def fine_tunes() -> list[tuple[advice.Answers, advice.Technique, str]]:
    """Answers with their technique and recipe, one for each text."""
    found = {}
    for answers in SPACE:
        technique = advice.advise(answers).technique
        if technique in advice.FINE_TUNES:
            text = recipe_text(answers, technique, Place())
            found.setdefault(text, (answers, technique, text))
    return list(found.values())


def test_every_combination_has_one_first_advice_with_a_reason():
    for answers in SPACE:
        found = advice.advise(answers)
        assert found.technique in advice.NAMES and len(found.reason) > 60 and found.then
        assert found.name not in found.instead and len(found.instead) <= 2


def test_every_rule_is_the_first_for_somebody():
    assert {advice.advise(answers).rule for answers in SPACE} == {rule.name for rule in advice.RULES}
    assert {rule.technique for rule in advice.RULES} == set(advice.NAMES)


@pytest.mark.parametrize(
    ("said", "technique"),
    [
        ({"goal": "facts", "kind": "texts"}, "rag"),
        ({"goal": "label", "kind": "table", "rows": 100_000}, "classic"),
        ({"kind": "none", "rows": 0}, "prompt"),
        ({"rows": 150}, "prompt"),
        ({"rows": 150, "latency": "tight"}, "lora"),
        ({"hardware": "24gb"}, "qlora"),
        ({"rows": 200_000, "hardware": "node"}, "sft"),
        ({"goal": "preference", "kind": "pairs"}, "dpo"),
        ({"goal": "verifiable", "kind": "prompts"}, "rlvr"),
        ({"goal": "verifiable", "kind": "prompts", "hardware": "cpu"}, "prompt"),
        ({"goal": "domain", "kind": "texts", "rows": 50_000}, "cpt"),
        ({}, "lora"),
    ],
)
def test_the_usual_questions_get_the_usual_answers(said, technique):
    usual = {"goal": "format", "kind": "examples", "rows": 1000, "changes_often": False, "hardware": "80gb", "latency": "relaxed"}  # fmt: skip
    assert advice.advise(advice.Answers(**{**usual, **said})).technique == technique


def test_every_recipe_can_be_run_and_has_no_caution_but_the_safety_gate():
    for answers, technique, text in fine_tunes():
        found = recipe.parse(yaml.safe_load(text), origin="advice")
        refuse_unsupported(found)
        read_policy(found.gate.policy)
        shape = public_shape(found.base_model.uri)[1]
        work = estimated(found, rows=max(answers.rows, 1), row_tokens=400, fill=0.97, known_from="test")
        said = {c.code for c in cautions(Planned(found=found, shape=shape, work=work, placed=None))}
        assert said <= {"safety"}, (technique, text, said)


def test_every_recipe_fits_the_hardware_that_was_named():
    for answers, technique, text in fine_tunes():
        if answers.hardware not in CARDS:
            continue
        found = recipe.parse(yaml.safe_load(text), origin="advice")
        shape = public_shape(found.base_model.uri)[1]
        needs = memory(shape, layout_of(found.finetune), tokens=micro_tokens(found))
        usable = PRICES.usable(PRICES.gpu(CARDS[answers.hardware])) - (16 << 30 if answers.hardware == "24gb" else 0)
        assert needs.peak < usable, (technique, answers.hardware, needs.peak / 2**30, usable / 2**30)


def test_every_recipe_has_a_placement():
    for answers, technique, text in fine_tunes()[::7]:
        found = recipe.parse(yaml.safe_load(text), origin="advice")
        shape = public_shape(found.base_model.uri)[1]
        work = estimated(found, rows=max(answers.rows, 1), row_tokens=400, fill=0.97, known_from="test")
        assert placements(Ask(found=found, shape=shape, work=work, prices=PRICES)), (technique, text)
