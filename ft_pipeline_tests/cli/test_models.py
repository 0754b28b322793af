"""`models`, `promote`, `rollback`, `history`, `report`: over a line that was made in code."""

from __future__ import annotations

import json

import pytest

from ft_pipeline.store.artifacts import open_store
from ft_pipeline_tests import lines


@pytest.fixture
def line(home, catalog, typed) -> str:
    """Two registered versions of a line: the second in production, the first archived."""
    from ft_pipeline import recipe
    from ft_pipeline.register.registration import Candidate, register

    store = open_store(home)
    lines.recipe_file(home)
    base = lines.plain_base(store)
    for seed in (0, 1):
        made = lines.publish_line(store, catalog, base=base, seed=seed)
        candidate = Candidate(
            recipe=recipe.read(home.home / "recipes" / "acme-router.yaml"),
            adapter=made["adapter"].ref, report=made["eval_report"].ref, base=base.ref, run_id="r",
        )  # fmt: skip
        register(candidate, store=store, catalog=catalog, settings=home)
    return "acme/router"


def test_models_of_an_empty_home(typed):
    answer = typed("models", "--json")
    assert answer.code == 0 and json.loads(answer.out) == []
    assert "no model is registered yet" in typed("models").out


def test_models_lists_versions_and_stages(typed, line):
    rows = json.loads(typed("models", "--json").out)
    assert [(r["model"], r["stage"]) for r in rows] == [("acme/router@1", "archived"), ("acme/router@2", "production")]
    assert json.loads(typed("models", "--tenant", "other", "--json").out) == []


def test_history_is_short_for_people_and_whole_as_json(typed, line):
    rows = json.loads(typed("history", line, "--json").out)
    assert rows[0]["from_stage"] == "none" and all(len(r["sha256"]) == 64 for r in rows)
    said = typed("history", line).out
    assert "archived" in said and rows[0]["sha256"][:8] in said and max(map(len, said.splitlines())) <= 200


def test_rollback_and_promote_move_versions(typed, line):
    answer = typed("rollback", line, "--reason", "wrong modules", "--json")
    assert answer.code == 0, answer.err
    assert [(r["model"], r["stage"]) for r in json.loads(typed("models", "--json").out)] == [
        ("acme/router@1", "production"), ("acme/router@2", "archived"),
    ]  # fmt: skip
    refused = typed("promote", line)
    assert refused.code in (2, 3) and "Cure:" in refused.err


@pytest.mark.parametrize("command", ["history", "report", "trace", "verify", "rollback", "promote", "chat"])
def test_an_unknown_model_gets_the_nearest_name(typed, line, command):
    answer = typed(command, "acme/rooter")
    assert answer.code == 2 and "Traceback" not in answer.err
    assert "acme/router" in answer.err and "Cure:" in answer.err
