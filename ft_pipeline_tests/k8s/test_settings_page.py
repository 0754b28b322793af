"""docs/settings.md has every setting, as settings.py says it."""

from __future__ import annotations

import re

from ft_pipeline.settings import PACKAGE
from ft_pipeline_tests.k8s.settings_page import PAGE, page, rows

INTERNAL = {"FT_RENDEZVOUS", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
"""What a starter tells its processes; nobody sets them."""


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text() == page(), "python -m ft_pipeline_tests.k8s.settings_page writes it anew"


def test_every_variable_that_the_code_reads_is_in_the_table():
    read = set(re.findall(r'"((?:FT|HF|DAGSTER)_[A-Z0-9_]+)"', (PACKAGE / "settings.py").read_text())) - INTERNAL
    told = {name for variable, _, _ in rows() for name in re.findall(r"[A-Z0-9_]{3,}", variable)}
    assert {name for name in read if not name.startswith("HF_HUB")} <= told
