"""The table of methods names every method, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ft_pipeline_tests import method_table

FOLDER = Path(__file__).parent / "finetune"


def test_every_method_has_a_row():
    from ft_pipeline.finetune.methods.method import METHODS

    assert {method for method, _ in method_table.ROWS} == set(METHODS)


@pytest.mark.parametrize("start", sorted({s for cells in method_table.ROWS.values() for c in cells for s in c}))
def test_every_cell_names_a_test_that_is_there(start):
    name, _, function = start.partition("::")
    source = (FOLDER / name).read_text(encoding="utf-8")
    assert re.search(rf"^def {re.escape(function.partition('[')[0])}", source, re.MULTILINE)


def test_a_failed_test_is_said_and_an_unclaimed_cell_is_empty():
    lines = method_table.table({"test_kto.py::test_wanted_answers[kto]": False, "test_x.py::test_y": True}).splitlines()
    row = next(line for line in lines if line.startswith("| kto"))
    assert row == "| kto | LoRA | FAILED | - | - |"


def test_the_page_is_of_this_table_and_nothing_in_it_failed():
    page = method_table.PAGE.read_text(encoding="utf-8")
    assert "| FAILED" not in page
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", page, re.MULTILINE)[1:]
    assert [(method, weights.strip()) for method, weights in rows] == list(method_table.ROWS)
