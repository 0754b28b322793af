"""`import-openai`: OpenAI's rows as they are, job settings as a recipe that parses again, and what differs."""

from __future__ import annotations

import json

import pytest
import yaml

from ft_pipeline.recipe import parse
from ft_pipeline_tests.web import rows

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"name": "weather", "arguments": '{"city": "Graz"}'}
PAIR = {
    "input": {"messages": [{"role": "user", "content": "Hello?"}], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "Good day."}],
    "non_preferred_output": [{"role": "assistant", "content": "Yo."}],
}


@pytest.fixture
def said(typed):
    """Exit code, stdout and stderr of a command line."""

    def say(*words: str) -> tuple[int, str, str]:
        ended = typed(*words)
        return ended.code, ended.out, ended.err

    return say


def written(tmp_path, name: str, content: object):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_rows_with_everything_that_openai_knows(said, tmp_path):
    asked = {"role": "user", "content": "Weather in Graz?"}
    path = written(
        tmp_path,
        "train.jsonl",
        rows.jsonl(
            rows.chat(1),
            {"messages": [*rows.chat(2, weight=0)["messages"], *rows.chat(3, weight=1)["messages"]]},
            {"messages": [asked, {"role": "assistant", "function_call": CALL}], "functions": [TOOLS[0]["function"]]},
            {
                "messages": [
                    asked,
                    {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": CALL}]},
                ],
                "tools": TOOLS,
                "parallel_tool_calls": False,
            },
            PAIR,
            {"messages": [asked, {"role": "assistant", "content": "no", "weight": 0}]},
        ),
    )
    code, out, err = said("import-openai", str(path), "--json")
    assert code == 0, err
    report = json.loads(out)["report"]
    assert report["usable_rows"] == 5
    assert [entry["reason"] for entry in report["rejected"]] == ["nothing_to_train"]
    assert report["openai"] == {
        "tools": 1, "parallel_tool_calls": 2, "weight": 2, "functions": 1, "function_call": 1, "tool_calls": 1, "preference": 1,
    } | report["openai"]  # fmt: skip
    assert any("weight 0" in note for note in report["notes"])


def test_settings_of_a_job_become_a_recipe_that_parses(said, tmp_path):
    path = written(tmp_path, "train.jsonl", rows.chats(40))
    job = {
        "object": "fine_tuning.job", "id": "ftjob-abc", "model": "gpt-4o-mini-2024-07-18", "created_at": 1, "finished_at": 2,
        "fine_tuned_model": "ft:gpt-4o-mini:acme::x", "organization_id": "org", "result_files": ["file-r"], "status": "succeeded",
        "validation_file": "file-v", "training_file": "file-t", "trained_tokens": 9, "seed": 42, "user_provided_suffix": "Support-Bot",
        "hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.8},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.8}}},
        "integrations": [{"type": "wandb", "wandb": {"project": "p"}}],
    }  # fmt: skip
    settings = written(tmp_path, "job.json", job)
    code, _, err = said("import-openai", str(path), "--job", str(settings))
    assert (code, "--model with one of: tiny-docs" in err) == (2, True)
    recipe = tmp_path / "recipe.yaml"
    code, out, err = said(
        "import-openai", str(path), "--job", str(settings), "--model", "tiny-docs", "--recipe", str(recipe), "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["request"]["suffix"] == "Support-Bot"
    assert "hyperparameters" not in told["request"]
    differs = "\n".join(told["differs"])
    for words in (
        "gpt-4o-mini-2024-07-18 becomes tiny-docs",
        "validation_file file-v",
        "integrations",
        "packed windows",
    ):
        assert words in differs
    found = parse(yaml.safe_load(recipe.read_text()), origin="the import")
    assert (found.name, found.finetune.epochs, found.finetune.seed) == ("support-bot", 3, 42)
    assert found.dataset.uri == str(path)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (b"[1]", "no JSON object"),
        (b"{", "no JSON"),
        ({"model": "tiny-docs", "learning_rate": 1}, "no field of a fine-tuning job"),
        ({"model": "tiny-docs", "hyperparameters": {"n_epochs": 0}}, "n_epochs"),
        ({"model": "tiny-docs", "method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "score_model"}}}}, "score_model"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_over_is_said(said, tmp_path, job, words):
    path = written(tmp_path, "train.jsonl", rows.chats(40))
    code, _, err = said("import-openai", str(path), "--job", str(written(tmp_path, "job.json", job)))
    assert (code, words in err) == (2, True), err


def test_dpo_with_auto(said, tmp_path):
    path = written(tmp_path, "pairs.jsonl", rows.jsonl(*[PAIR] * 20))
    job = {
        "model": "tiny-docs",
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": "auto"}}},
    }
    code, out, err = said("import-openai", str(path), "--job", str(written(tmp_path, "job.json", job)))
    assert code == 0, err
    assert "n_epochs auto becomes" in out
    assert "method dpo" in out


def test_gc_says_what_would_go(said):
    code, out, _ = said("files", "gc", "--dry-run", "--json")
    assert (code, json.loads(out)) == (0, [{"blobs": 0, "bytes": 0, "uploads": 0, "kept": 0}])
