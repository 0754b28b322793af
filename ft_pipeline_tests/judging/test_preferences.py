"""Preference pairs by a judge (RLAIF): from a file of candidates to a dataset that a recipe trains on, with its lineage."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ft_pipeline.acquire.artifact import raw_files
from ft_pipeline.acquire.dataset import acquire
from ft_pipeline.acquire.judged import judged_pairs
from ft_pipeline.cli.judge_data import data
from ft_pipeline.curate.layouts import preference_sides
from ft_pipeline.curate.normalize import layout_of
from ft_pipeline.errors import DataError, NotFoundError
from ft_pipeline.judging.duels import duel_calls, same_text_rows
from ft_pipeline.judging.preferences import Candidates, duels_of, labelled, read_candidates
from ft_pipeline.judging.scripted import Scripted
from ft_pipeline.judging.transcripts import Asking, ask_all, read_rows
from ft_pipeline.recipe import Dataset
from ft_pipeline_tests.judging import judges


@pytest.fixture
def label(tmp_path):
    def made(items, function, keep="best"):
        duels = duels_of(items)
        rows = ask_all(duel_calls(duels), Asking(speaker=Scripted(function), path=tmp_path / f"{keep}.jsonl"))
        return labelled(items, [*rows, *same_text_rows(duels)], keep=keep)

    return made


def test_the_best_against_the_worst_or_every_decided_pair(label) -> None:
    items = [Candidates(id="a", prompt="q", answers=("mm", "longest", "s"))]
    best = label(items, judges.prefers_longer)
    assert [(p["chosen"], p["rejected"], p["judge_margin"]) for p in best.pairs] == [("longest", "s", 1.0)]
    assert best.reasons == {"not the widest": 2} and (best.compared, best.consistent) == (3, 3)
    every = label(items, judges.prefers_longer, keep="all")
    assert {(p["chosen"], p["rejected"]) for p in every.pairs} == {("longest", "mm"), ("longest", "s"), ("mm", "s")}


def test_what_is_not_sure_is_in_the_ledger_with_its_reason(label) -> None:
    items = [
        Candidates(id="tie", prompt="q", answers=("aa", "bb")),
        Candidates(id="same", prompt="q", answers=("aa", "aa")),
        Candidates(id="won", prompt=[{"role": "user", "content": "q"}], answers=("aa", "b")),
    ]
    found = label(items, judges.prefers_longer)
    assert found.reasons == {"same text": 1, "tie": 1} and [p["judged_id"] for p in found.pairs] == ["won"]
    assert found.pairs[0]["prompt"] == [{"role": "user", "content": "q"}]
    placed = label(items, judges.always_first, keep="all")
    assert placed.pairs == [] and placed.reasons == {"inconsistent": 2, "same text": 1} and placed.consistent == 0
    assert label(items[:1], judges.no_function_at_all, keep="all").reasons == {"inconsistent": 1}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "q"}, "lacks prompt or candidates"),
        ({"prompt": "q", "candidates": ["one"]}, "two or more"),
        ({"prompt": " ", "candidates": ["a", "b"]}, "text or messages"),
        ({"prompt": "q", "candidates": ["a", 1]}, "non-empty texts"),
    ],
)
def test_a_row_that_cannot_be_judged_names_its_line(tmp_path, row, fault) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"prompt": "q", "candidates": ["a", "b"]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"c.jsonl:2: .*{fault}"):
        read_candidates(path)


def test_from_candidates_to_a_dataset_of_a_recipe(home, store, catalog, tmp_path) -> None:
    rows = [
        {"id": f"r{n}", "prompt": f"question {n}?", "candidates": ["a" * (n + 1), "b" * (n + 3), "c"]} for n in range(6)
    ]
    source = tmp_path / "candidates.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    spec = tmp_path / "judge.yaml"

    def longer(_number: int, body: dict) -> tuple[int, str]:
        first, second = judges.answers_of(body)
        return 200, "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"

    with judges.serve(longer) as server:
        spec.write_text(f"kind: endpoint\nmodel: mistral-small\nbase_url: {server.url}\ncalls_at_once: 3\n")
        arguments = [
            "judge-pairs",
            str(source),
            "--judge",
            str(spec),
            "--licence",
            "mit",
            "--generator",
            "qwen-7b",
            "--json",
        ]
        ended = CliRunner().invoke(data, arguments, catch_exceptions=False)
        told = json.loads(ended.stdout)
        assert told["pairs"] == 6 and told["consistent"] == told["compared"] and told["failures"] == {}
        asked = len(server.requests)
        again = json.loads(CliRunner().invoke(data, arguments, catch_exceptions=False).stdout)
        assert again["uri"] == told["uri"] and len(server.requests) == asked  # found, not asked again
    made = acquire(Dataset(uri=told["uri"]), settings=home, store=store)
    assert made.ref.digest == told["uri"].removeprefix("store://") and set(made.manifest.parents) == {"candidates"}
    (path,) = raw_files(made).values()
    pairs = read_rows(path)
    assert {(p["chosen"], p["rejected"]) for p in pairs[:1]} == {("bbb", "a")}
    assert layout_of(pairs[0]) == "preference" and preference_sides(pairs[0])[1][0]["content"] == "bbb"
    assert len(read_rows(made.file("transcripts.jsonl"))) == asked == 36
    with pytest.raises(NotFoundError, match="no raw dataset"):
        acquire(Dataset(uri="store://ffff"), settings=home, store=store)


def test_a_judge_that_fails_labels_nothing_and_goes_on_where_it_was(home, store, tmp_path, monkeypatch) -> None:
    from ft_pipeline.acquire.judged import Order
    from ft_pipeline.judging.endpoint import Endpoint

    source = tmp_path / "c.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"q{n}", "candidates": ["aa", "b"]}) + "\n" for n in range(5)))
    raw = acquire(Dataset(uri=str(source)), settings=home, store=store)
    order = Order(candidates=raw.ref, judge={"model": "m"}, keep="best", licence="unknown", parents={})
    sick = [True]

    def half(number: int, body: dict) -> tuple[int, str]:
        if sick[0] and number % 2:
            return 503, "overloaded"
        return 200, "[[A]]" if len(judges.answers_of(body)[0]) == 2 else "[[B]]"

    with judges.serve(half) as server:
        speaker = Endpoint(base_url=server.url, model="m", attempts=1)
        with pytest.raises(DataError, match=r"5 of 10 calls to the judge gave no verdict \(5 server\)"):
            judged_pairs(order, store, speaker=speaker)
        sick[0] = False
        assert judged_pairs(order, store, speaker=speaker).manifest.counts["pairs"] == 5
        assert len(server.requests) == 15


def test_candidates_are_drawn_from_a_served_model_and_a_stopped_draw_goes_on(tmp_path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "candidates.jsonl"
    turns = [{"role": "system", "content": "short"}, {"role": "user", "content": "two?"}]
    prompts.write_text(json.dumps({"prompt": "one?"}) + "\n" + json.dumps({"id": "b", "prompt": turns}) + "\n")
    down = [True]

    def answer(_number: int, body: dict) -> tuple[int, str]:
        if down[0] and len(body["messages"]) == 2:
            return 400, "no"
        return 200, f"{body['messages'][-1]['content']} {body['seed']} {body['temperature']}"

    with judges.serve(answer) as server:
        arguments = [
            "sample",
            str(prompts),
            "--base-url",
            server.url,
            "--model",
            "m",
            "--samples",
            "2",
            "--temperature",
            "0.7",
        ]
        arguments += ["--out", str(out)]
        with pytest.raises(DataError, match=r"1 of 2 prompts got no answers \(1 refused\)"):
            CliRunner().invoke(data, arguments, catch_exceptions=False)
        down[0] = False
        asked = len(server.requests)
        assert CliRunner().invoke(data, arguments, catch_exceptions=False).exit_code == 0
        assert len(server.requests) == asked + 2
    found = read_candidates(out)
    assert [(c.id, c.answers) for c in found] == [
        ("1", ("one? 0 0.7", "one? 1 0.7")),
        ("b", ("two? 0 0.7", "two? 1 0.7")),
    ]
    assert found[1].prompt == turns
