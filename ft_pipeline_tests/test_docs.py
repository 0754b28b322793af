"""What docs/data.md shows is true: its recipe sections are valid, its rows are read as it says, every reason is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ft_pipeline import recipe
from ft_pipeline.cli.main import COMMANDS
from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.mapping import open_mapping
from ft_pipeline.curate.normalize import Normal, normalize
from ft_pipeline.curate.validate import ControlTokens, reason_to_reject
from ft_pipeline.settings import PROJECT
from ft_pipeline_tests import road

PAGES = sorted((PROJECT / "docs").glob("*.md"))
DATA = (PROJECT / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = [block for page in PAGES for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
LAYOUTS = re.findall(r"^\| (\w+) \| `(\{.*\})` \| (\w+) \|$", DATA, re.MULTILINE)


@pytest.mark.parametrize("block", SECTIONS)
def test_every_recipe_section_is_valid(block: str):
    made = recipe.parse({**road.document(), **recipe.document_of(block)}, origin="docs")
    for source in (made.dataset, *made.mix):
        open_mapping(source.mapping)
    assert set(made.curate.max_rejected) <= set(Reason)


def test_there_are_sections_and_layouts_to_check():
    assert len(SECTIONS) >= 8 and {layout for layout, _, _ in LAYOUTS} == set(recipe.Layout.__args__) - {"auto"}


@pytest.mark.parametrize(("layout", "row", "shape"), LAYOUTS)
def test_every_example_row_is_read_as_the_page_says(layout: str, row: str, shape: str):
    for pinned in ("auto", layout):
        found = normalize(json.loads(row), pinned)
        assert isinstance(found, Normal) and (found.layout, found.shape) == (layout, shape)
        assert reason_to_reject(found.shape, found.content, ControlTokens(())) is None


def test_every_reason_is_explained():
    table = DATA[DATA.index("| reason | what it says |") :]
    assert [str(reason) for reason in Reason if f"`{reason}`" not in table] == []


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "README.md"], ids=lambda page: page.name)
def test_commands_and_links_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    commands = {word for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for word in re.findall(r"^ft-pipeline ([\w-]+)", block, re.MULTILINE)}  # fmt: skip
    assert commands <= set(COMMANDS)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
