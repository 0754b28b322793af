"""A source that is a split as a whole: its rows and their variants are not trained on. Preference rows as OpenAI writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.curate.artifact import SPLITS, rows_of
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.curate.normalize import normalize
from ft_pipeline.curate.splits import leaks
from ft_pipeline.recipe import Curate, Dataset, Source, Splits, parse
from ft_pipeline_tests import road

NO_SHARES = Curate(splits=Splits(validation=0.0, holdout=0.0))


def asked(row: dict) -> str:
    return row["content"]["messages"][0]["content"]


def test_its_rows_and_their_variants_leave_the_training(home, store, tmp_path: Path) -> None:
    rows = road.clean_rows(60)
    near = json.loads(json.dumps(rows[:5]))
    for row in near:
        row["messages"][0]["content"] += "!"
    files = {
        "rows": rows,
        "validation": [*rows[5:10], road.question(900)],
        "holdout": [*near, rows[9], road.question(901)],
    }
    paths = {name: road.write_rows(tmp_path / f"{name}.jsonl", found) for name, found in files.items()}
    mix = tuple(Source(name=name, uri=str(paths[name]), split=name) for name in ("validation", "holdout"))  # type: ignore[arg-type]
    own = Dataset(uri=str(paths["rows"]))
    listed = [{"name": s.name, "uri": s.uri, "split": s.split} for s in mix]
    found = parse(road.document(dataset={"uri": own.uri}, mix=listed), origin="test")
    raw = dataset.acquire_all(found, settings=home, store=store)
    made = curate(Curation(config=NO_SHARES, raw=raw.ref, dataset=own, mix=mix), store=store)
    splits = {split: [asked(row) for row in rows_of(made, split)] for split in SPLITS}
    assert (len(splits["train"]), len(splits["validation"]), len(splits["holdout"])) == (50, 5, 7)
    first = {asked({"content": row}) for row in rows[:10]}
    assert first.isdisjoint(splits["train"])
    assert asked({"content": rows[9]}) in splits["holdout"], "what is in both decides the gate"
    assert leaks(made) == {}


def test_such_a_source_has_no_share_of_the_training() -> None:
    with pytest.raises(ValueError, match="gives none"):
        Source(name="held", uri="x", split="holdout", share=0.1)


def test_preference_rows_of_openai() -> None:
    row = {
        "input": {"messages": [{"role": "user", "content": "Which?"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "This."}],
        "non_preferred_output": [{"role": "assistant", "content": "That."}],
    }
    for layout in ("auto", "preference"):
        made = normalize(row, layout)
        assert (made.layout, made.content["prompt"][0]["content"]) == ("preference", "Which?")
        assert (made.content["chosen"][0]["content"], made.content["rejected"][0]["content"]) == ("This.", "That.")


def test_reinforcement_rows_of_openai() -> None:
    made = normalize({"messages": [{"role": "user", "content": "1+1?"}], "reference_answer": "2"}, "auto")
    assert (made.layout, made.content["answer"]) == ("rlvr", "2")
