"""`recipes` and `plan`: what can be run, and a recipe that cannot be is refused with its place, its value and the cure."""

from __future__ import annotations

import json

import pytest
import yaml

from ft_pipeline_tests import road


@pytest.fixture
def written(home, typed):
    """Writes the recipe, with changes, beside rows and a folder in place of the base model."""
    base = home.home / "bases" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    road.write_rows(home.home / "rows.jsonl", road.clean_rows(3))
    return lambda **changes: road.write_recipe(home.home, **changes)


def test_recipes_lists_the_packaged_ones(typed):
    answer = typed("recipes", "--json")
    assert answer.code == 0
    rows = {row["recipe"]: row for row in json.loads(answer.out)}
    assert {"demo-docs-router", "demo-overfit", "llama31-8b-instruct-lora", "qwen3-8b-dpo"} <= rows.keys()
    assert rows["demo-docs-router"]["model"] == "demo/docs-router"
    assert not [r for r in rows.values() if r["method"] == "refused"]


def test_a_folder_of_ones_own_comes_first_and_wins(home, typed):
    road.write_recipe(home.home, "demo-overfit", name="mine")
    rows = json.loads(typed("recipes", "--json").out)
    assert rows[0]["recipe"] == "demo-overfit" and rows[0]["model"] == "acme/mine"
    assert [r["recipe"] for r in rows].count("demo-overfit") == 1


def test_a_file_that_is_no_recipe_is_listed_with_the_reason(home, typed):
    road.write_recipe(home.home, "broken", finetune={"method": "sft"})
    row = next(r for r in json.loads(typed("recipes", "--json").out) if r["recipe"] == "broken")
    assert row["method"] == "refused" and "finetune.learning_rate is missing" in row["description"]
    assert "broken" in typed("recipes").out


def test_plan_of_an_empty_store_computes_everything(written, typed):
    path = written()
    for name in ("router", "acme/router", str(path)):
        answer = typed("plan", name, "--json")
        assert answer.code == 0, answer.err
        made = json.loads(answer.out)
        assert {step["state"] for step in made["steps"]} == {"compute"} and made["optimizer_steps"] is None
    assert "raw_dataset" in typed("plan", "router").out


def test_plan_writes_nothing_into_the_store(written, home, typed):
    written()
    assert typed("plan", "router").code == 0
    assert not (home.home / "store").exists()


REFUSED = {
    "unknown key": (lambda d: d["finetune"].update(learing_rate=1), "unknown key finetune.learing_rate: did you mean learning_rate?"),
    "unknown section": (lambda d: d.update(curat={}), "unknown key curat: did you mean curate?"),
    "deep unknown key": (lambda d: d["finetune"]["lora"].update(rnk=8), "unknown key finetune.lora.rnk: did you mean rank?"),
    "missing decision": (lambda d: d["finetune"].pop("learning_rate"), "finetune.learning_rate is missing"),
    "text for a number": (lambda d: d["finetune"].update(epochs="three"), "finetune.epochs: Input should be a valid integer"),
    "not a number": (lambda d: d["finetune"].update(learning_rate=float("nan")), "is not a recipe"),
    "below zero": (lambda d: d["finetune"].update(learning_rate=-1.0), "learning_rate -1.0 must be above 0"),
    "steps and micros": (lambda d: d["finetune"].update(windows_per_step=3), "windows_per_step 3 is not a multiple of windows_per_micro 4"),
    "no rows left": (lambda d: d["curate"]["splits"].update(holdout=0.95), "must leave rows to train on"),
    "name": (lambda d: d.update(name="My Router"), "'My Router' is not a name"),
    "method": (lambda d: d["finetune"].update(method="rlhf"), "finetune.method: Input should be 'sft', 'cpt', 'dpo'"),
    "schedule": (lambda d: d.update(schedule="every monday"), "schedule 'every monday': 2 fields, not 5"),
    "policy": (lambda d: d["gate"].update(policy="stagin"), "no gate policy 'stagin': did you mean staging?"),
    "base model": (lambda d: d["base_model"].update(uri="home://bases/nope"), "acme/router base_model: no file or folder at home://bases/nope"),
    "dataset": (lambda d: d["dataset"].update(uri="home://rowz.jsonl"), "acme/router dataset: no file or folder at home://rowz.jsonl"),
    "suite": (lambda d: d["gate"].update(benchmarks=[{"name": "cloze", "uri": "home://c.jsonl"}]), "acme/router gate.benchmarks cloze: no file or folder"),
    "prompts": (lambda d: d["gate"].update(safety={"uri": "home://s.jsonl"}), "acme/router gate.safety: no file or folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_recipe_that_cannot_run_is_refused_before_anything_runs(written, home, typed, case, command):
    change, expected = REFUSED[case]
    document = yaml.safe_load(written().read_text())
    change(document)
    (home.home / "recipes" / "router.yaml").write_text(yaml.safe_dump(document))
    answer = typed(command, "router")
    assert answer.code == 2
    assert expected in answer.err and "Cure:" in answer.err and "Traceback" not in answer.err
    assert not (home.home / "store").exists() and not home.dagster_home.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"tenant: [unclosed", "is not YAML"),
        (b"- a\n- list", "holds list, not a mapping"),
        (b"", "holds NoneType, not a mapping"),
        (b"tenant: \xff\xfe", "is not YAML"),
        (b"when: 2026-13-45", "is not YAML"),
        (b"tenant: 2026-11-25\n", "use plain YAML values"),
        (b"a: &a [*a]\n", "is not a recipe"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused(home, typed, content, expected):
    path = home.home / "recipes" / "odd.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    answer = typed("plan", "odd")
    assert answer.code == 2 and expected in answer.err and "Traceback" not in answer.err
    assert typed("recipes", "--json").code == 0, "one broken file hides no other"


def test_a_missing_file_and_an_unknown_name(home, typed):
    missing = typed("plan", "nowhere/none.yaml")
    assert missing.code == 2 and "no recipe at nowhere/none.yaml" in missing.err
    unknown = typed("plan", "demo-doc-router")
    assert unknown.code == 2 and "did you mean demo-docs-router?" in unknown.err


def test_pin_writes_the_revision_down_and_moves_only_when_asked(written, home, typed):
    path = written()
    path.write_text("# kept\n" + path.read_text())
    (home.home / "bases" / "tiny" / "tokenizer.json").write_text("{}")
    (home.home / "bases" / "tiny" / "model.safetensors").write_bytes(b"weights")

    def pinned(*options: str) -> str:
        answer = typed("pin", "acme/router", "--json", *options)
        assert answer.code == 0, answer.err
        return json.loads(answer.out)[0]["revision"]

    first = pinned()
    (home.home / "bases" / "tiny" / "model.safetensors").write_bytes(b"others!")
    assert pinned() == first
    moved = pinned("--update", "--write")
    assert moved != first and len(moved) == 64
    assert path.read_text().startswith("# kept\n") and f"revision: {moved}" in path.read_text()


def test_a_missing_place_gets_the_nearest_name(written, typed):
    written(dataset__uri="home://rowz.jsonl")
    assert "did you mean rows.jsonl?" in typed("plan", "router").err
