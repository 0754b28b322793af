"""Every packaged recipe: it parses, it is the only one of its name, it points at things that can exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ft_pipeline import recipe, settings
from ft_pipeline.acquire import hub
from ft_pipeline_tests import road

FOLDER = settings.PACKAGE / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
EXPECTED = {
    "demo-docs-router", "demo-overfit", "smollm2-135m-alpaca-lora", "llama31-8b-instruct-lora", "llama31-8b-qlora",
    "qwen3-8b-dpo", "llama31-70b-lora-fsdp", "llama31-8b-cpt",
}  # fmt: skip


def test_all_promised_recipes_are_packaged() -> None:
    assert {path.stem for path in FILES} >= EXPECTED


def test_no_two_recipes_are_one_model_line() -> None:
    keys = [recipe.read(path).key for path in FILES]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_parses_and_names_its_policy(path: Path) -> None:
    made = recipe.read(path)
    assert made.description
    assert (settings.PACKAGE / "gate" / "policies" / f"{made.gate.policy}.yaml").is_file()
    assert made.dataset.licence != "unknown"
    assert made.finetune.method != "dpo" or made.finetune.preference is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_place_is_made_up(path: Path) -> None:
    """Hub names are well formed and carry no commit that nobody has looked up; everything else is below FT_HOME."""
    made = recipe.read(path)
    for uri in (made.base_model.uri, made.dataset.uri):
        assert uri.startswith(("hf://", "home://"))
        if uri.startswith("hf://"):
            assert hub.parse(uri).revision is None
    assert made.base_model.revision is None
    assert made.dataset.revision is None
    suites = [suite.uri for suite in made.gate.benchmarks] + ([made.gate.safety.uri] if made.gate.safety else [])
    assert all(uri.startswith("home://") for uri in suites)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_decision_has_a_comment(path: Path) -> None:
    """A stranger reads a recipe top to bottom: the file opens with what it is for, and the section that changes weights says why."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    section = lines[lines.index("finetune:") + 1 : lines.index("gate:")]
    assert sum("#" in line for line in section) >= len(section) // 2


def test_off_is_a_policy_and_no_is_a_language(tmp_path: Path) -> None:
    text = yaml.safe_dump(road.document()).replace(
        "curate:\n", "curate:\n  near_duplicates: {policy: off}\n  language: {keep: [no, en]}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    made = recipe.read(tmp_path / "r.yaml").curate
    assert made.near_duplicates.policy == "off" and made.language.keep == ("no", "en")
    assert recipe.document_of("a: [true, False, yes, on, null, 1]")["a"] == [True, False, "yes", "on", None, 1]
