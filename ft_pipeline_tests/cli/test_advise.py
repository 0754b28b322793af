"""`advise`: six questions or options, one answer, and a recipe that `plan` takes."""

from __future__ import annotations

import json

import pytest

LORA = ("--goal", "format", "--have", "examples", "--rows", "5000", "--hardware", "80gb", "--latency", "tight")


def test_options_alone_are_enough_and_the_recipe_can_be_planned(home, typed):
    answer = typed("advise", *LORA, "--yes", "--out", "tone.yaml")
    assert answer.code == 0, answer.err
    assert "LoRA fine-tuning" in answer.out and "ft-pipeline plan tone.yaml --rows 5000" in answer.out
    planned = typed("plan", "tone.yaml", "--rows", "5000", "--json")
    assert planned.code == 0, planned.err
    made = json.loads(planned.out)
    assert made["recipe"] == "mine/tone" and made["estimate"]["placements"][0]["gpus"] >= 1


@pytest.mark.parametrize(
    "said",
    [
        ("--hardware", "24gb"), ("--hardware", "cpu"), ("--hardware", "node", "--rows", "200000"),
        ("--have", "pairs", "--goal", "preference"), ("--have", "prompts", "--goal", "verifiable"),
        ("--have", "texts", "--goal", "domain"),
    ],
)  # fmt: skip
def test_every_kind_of_fine_tune_can_be_planned(typed, said):
    answer = typed("advise", *said, "--json")
    made = json.loads(answer.out)
    assert answer.code == 0 and made["recipe"] == "first.yaml" and made["reason"]
    planned = typed("plan", "first.yaml", "--rows", str(made["answers"]["rows"]))
    assert planned.code == 0, planned.err
    assert "no placement fits" not in planned.out and "the cheapest placement" in planned.out


def test_an_advice_that_trains_nothing_writes_nothing(home, typed):
    from pathlib import Path

    answer = typed("advise", "--goal", "facts", "--changes-often", "--yes")
    assert answer.code == 0 and "retrieval (RAG)" in answer.out and "no recipe" in answer.out
    assert not Path("first.yaml").exists()


def test_a_file_is_not_written_over_unasked(typed):
    assert typed("advise", "--yes").code == 0
    again = typed("advise", "--yes")
    assert again.code == 2 and "first.yaml is there already" in again.err and "--force" in again.err
    assert typed("advise", "--yes", "--force").code == 0


def test_a_file_name_that_is_no_name_is_refused(typed):
    answer = typed("advise", "--yes", "--out", "My Model.yaml")
    assert answer.code == 2 and "cannot be a recipe's name" in answer.err


def test_questions_are_asked_for_what_is_not_said(home, monkeypatch):
    from click.testing import CliRunner

    from ft_pipeline.cli.advise import advise

    answer = CliRunner().invoke(advise, ["--hardware", "24gb"], input="label\nexamples\n3000\ntight\n")
    assert answer.exit_code == 0, answer.output
    assert "What do you have?" in answer.output and "What will it train on?" not in answer.output
    assert "change by the week" not in answer.output, "asked for facts only"


def test_nothing_has_no_number_of_rows(home):
    from click.testing import CliRunner

    from ft_pipeline.cli.advise import advise

    answer = CliRunner().invoke(advise, ["--hardware", "cpu", "--latency", "tight"], input="style\nnone\n")
    assert answer.exit_code == 0 and "prompt engineering" in answer.output and "How many rows?" not in answer.output
