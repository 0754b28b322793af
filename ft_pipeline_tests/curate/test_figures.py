"""What the door of curate shows, over a dataset with something of everything: a mix, filters, conflicts, a benchmark."""

from __future__ import annotations

import base64
from dataclasses import replace

import polars as pl
import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.curate import figures, references
from ft_pipeline.curate.artifact import statistics_of
from ft_pipeline.curate.balance import balance
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.recipe import Benchmark, Contamination, Curate, Dataset, Source, Splits
from ft_pipeline_tests import road, tiny

QUESTION = "which of these seven rivers runs through the largest number of countries before it reaches the sea at last"


@pytest.fixture
def curated(home, store, tmp_path):
    rows = road.clean_rows(40)
    rows[3]["messages"][0]["content"] += " write to ann.miller@firma.de or bob@firma.de"
    for number, answer in ((7, "maybe | or not"), (8, "never")):
        rows.append(road.question(number, answer=answer))
    variant = road.question(9)
    variant["messages"] = [
        {"role": "user", "content": variant["messages"][0]["content"] + "?"},
        {"role": "assistant", "content": "perhaps so"},
    ]
    told = {
        "messages": [
            {"role": "user", "content": f"please say: {QUESTION}?"},
            {"role": "assistant", "content": "the Danube"},
        ]
    }
    road.write_rows(tmp_path / "rows.jsonl", [*rows, variant, told, road.question(5)], ["{bad"])
    road.write_rows(tmp_path / "safe.jsonl", [road.question(n, answer="I cannot do that.") for n in range(200, 210)])
    road.write_rows(
        tmp_path / "quiz" / "test.jsonl",
        [{"id": "q1", "question": QUESTION}, {"id": "q2", "question": " ".join(road.words(14, seed=77))}],
    )
    config = Curate(
        splits=Splits(validation=0, holdout=0.1),
        contamination=Contamination(benchmarks=(Benchmark(name="quiz", uri=str(tmp_path / "quiz")),)),
    )
    mix = (Source(name="safe", uri=str(tmp_path / "safe.jsonl"), cap=6, safety=True),)
    whole = tiny.recipe(curate=config, dataset=Dataset(uri=str(tmp_path / "rows.jsonl")))
    whole = replace(whole, mix=mix)
    raw = dataset.acquire_all(whole, settings=home, store=store)
    opened = references.opened(config, settings=home, store=store)
    return curate(Curation(config=config, raw=raw.ref, dataset=whole.dataset, mix=mix, **opened), store=store)


def cells(markdown: str) -> list[list[str]]:
    return [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]


def test_tables_say_what_is_in_the_files(curated):
    numbers = statistics_of(curated)
    flags = cells(figures.flag_table(curated))
    assert flags[0] == ["filter", "reason", "action", "rows", "findings"]
    assert ["pii", "personal_data", "note", "1", "2"] in flags and [
        "contamination",
        "contaminated",
        "drop",
        "1",
        "1",
    ] in flags
    sources = {row[0]: row[1:] for row in cells(figures.source_table(numbers["sources"]))[2:]}
    assert sources["safe"][:3] == ["10", "6", "4"] and sources["dataset"][0] == "46"
    assert sum(float(row[-1].rstrip("%")) for row in sources.values()) == pytest.approx(100, abs=0.2)
    items = figures.item_table(curated)
    assert items.startswith("1 items of 1 benchmarks") and cells(items)[2][:5] == ["quiz", "q1", "1", "0", "100%"]


def test_conflicts_are_shown_once_with_both_answers(curated):
    found = figures.conflicts(curated, num_prompts=5)
    assert {frozenset(one.answers) for one in found} == {
        frozenset({"yes", "maybe | or not"}),
        frozenset({"yes", "never"}),
    }
    shown = figures.conflict_table(curated)
    assert "maybe \\| or not" in shown and len(shown.splitlines()) == 4
    assert len(figures.conflicts(curated, num_prompts=1)) == 1


def test_pictures_are_png(curated):
    numbers = statistics_of(curated)
    assert figures.cluster_chart({"101+": 1, "11-100": 2, "2": 3}) == figures.cluster_chart(
        {"2": 3, "11-100": 2, "101+": 1}
    )
    for made in (
        figures.cluster_chart(numbers["clusters"]["sizes"]),
        figures.length_chart(numbers["length_histogram"]),
        figures.drop_chart(numbers["dropped_by_reason"]),
    ):
        assert base64.b64decode(made.split("base64,")[1].rstrip(")")).startswith(b"\x89PNG")


def test_nothing_found_is_said_in_words(home, store, tmp_path):
    path = road.write_rows(tmp_path / "rows.jsonl", road.clean_rows(9))
    raw = dataset.acquire(Dataset(uri=str(path)), settings=home, store=store)
    made = curate(Curation(config=Curate(), raw=raw.ref, dataset=Dataset(uri=str(path))), store=store)
    numbers = statistics_of(made)
    assert "variants of each other" in figures.cluster_chart(numbers["clusters"]["sizes"])
    assert figures.flag_table(made) == "No filter found anything."
    assert figures.conflict_table(made) == "No prompt has two answers."
    assert "names no benchmark" in figures.item_table(made)


def test_the_balance_is_counted_from_the_files(curated):
    found = balance(curated)
    assert found.adds_up and found.rows_in == 56 and found.kept == curated.manifest.counts["rows_kept"]


@pytest.mark.parametrize("fault", ["a line lost", "a row twice"])
def test_a_dataset_that_does_not_add_up_is_found(curated, fault):
    if fault == "a line lost":
        path = curated.file("ledger.parquet")
        pl.read_parquet(path).filter(pl.col("reason") != "not_json").write_parquet(path)
    else:
        train = pl.read_parquet(curated.file("train.parquet"))
        holdout = pl.read_parquet(curated.file("holdout.parquet"))
        pl.concat([holdout[1:], train[:1]]).write_parquet(curated.file("holdout.parquet"))
    found = balance(curated)
    assert not found.adds_up and found.twice == (fault == "a row twice")


def test_the_safety_share_is_that_of_the_train_rows(curated):
    numbers = statistics_of(curated)
    trained = {name: counted["train"] for name, counted in numbers["sources"].items()}
    assert numbers["safety_share"] == pytest.approx(trained["safe"] / sum(trained.values()), abs=1e-6) != 0
