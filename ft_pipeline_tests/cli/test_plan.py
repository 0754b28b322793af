"""`plan` as a person reads it: memory by part, placements, cautions, assumptions; and what it says no to."""

from __future__ import annotations

import json

import pytest

from ft_pipeline_tests import road

SECTION = {
    "method": "sft", "lora": {"rank": 16, "alpha": 16}, "learning_rate": 2e-4, "epochs": 2, "windows_per_step": 32,
    "windows_per_micro": 1, "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def planned(home, typed):
    """Plans a recipe on Llama-3.1-8B without rows or model."""
    road.write_recipe(home.home, base_model={"uri": "hf://meta-llama/Llama-3.1-8B"}, finetune=SECTION, encode={"window_tokens": 4096})  # fmt: skip
    return lambda *words: typed("plan", "router", "--rows", "50000", "--row-tokens", "300", *words)


def test_a_plan_reads_from_parts_to_money(planned):
    said = planned().out
    for part in ("8.03 B parameters, 41.9 M of them trained", "weights", "activations", "peak", "> 1 x ", "interruptions", "spot", "assumed", "MFU 40%"):  # fmt: skip
        assert part in said, part
    assert "epochs  2 epochs over 35,000 rows" in said and "alpha  alpha 16 at rank 16" in said


def test_json_holds_all_of_it_in_numbers(planned):
    made = json.loads(planned("--json").out)["estimate"]
    assert made["parameters"] == 8_030_261_248 and made["trained"] == 41_943_040
    assert made["placements"][0]["memory"]["peak"] > made["placements"][0]["memory"]["weights"] > 15e9
    assert {c["code"] for c in made["cautions"]} >= {"epochs", "alpha"}


def test_wishes_are_kept(planned):
    first = json.loads(planned("--gpu", "A100-80x4", "--mfu", "0.5", "--market", "on-demand", "--json").out)["estimate"]["placements"]  # fmt: skip
    assert [(p["gpu"], p["gpus"]) for p in first] == [("A100-80", 4)]
    odd = planned("--gpu", "H100x3")
    assert "3 GPUs do not divide the 32 micro-batches" in odd.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--gpu", "H10O"), "did you mean H100?"),
        (("--gpu", "H100x0"), "--gpu H100x0: 0 GPUs"),
        (("--within", "-1"), "-1"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(planned, words, expected):
    answer = planned(*words)
    assert answer.code == 2 and expected in answer.err and "Traceback" not in answer.err


def test_what_fits_nowhere_or_takes_too_long_has_a_cure(planned, home):
    late = planned("--gpu", "L40Sx1", "--within", "0.01")
    assert late.code == 0 and "no placement ends in time" in late.out and "Cure" in late.out
    road.write_recipe(
        home.home, base_model={"uri": "hf://meta-llama/Llama-3.1-70B"}, finetune={**SECTION, "lora": None}
    )
    large = planned("--gpu", "A100-40x2")
    assert large.code == 0 and "no placement fits" in large.out and "windows_per_micro" in large.out


def test_a_run_shows_two_lines_first(finished_run):
    said = json.loads((finished_run / "ended.json").read_text())["stdout"]
    assert "memory   0." in said and "GiB in one process here" in said and "cost     " in said
