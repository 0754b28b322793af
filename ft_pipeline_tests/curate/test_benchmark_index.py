"""Benchmarks as people keep them become items, and items an index that is made once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from ft_pipeline.curate.benchmark_index import index_of, index_of_items, open_index
from ft_pipeline.curate.benchmark_items import read_items
from ft_pipeline.curate.contamination import Scanner
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Benchmark

QUESTION = "Which gas do plants take from the air when the sun shines on their leaves?"
CHOICES = ["carbon dioxide", "pure oxygen", "laughing gas", "argon"]


def files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def written(folder: Path, name: str, content: str | bytes) -> dict[str, Path]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return files(folder)


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


SHAPES = {
    "mmlu": {"question": QUESTION, "choices": CHOICES, "answer": 0, "subject": "biology"},
    "hellaswag": {"ind": 7, "ctx": QUESTION, "endings": CHOICES, "label": "0"},
    "arc": {"id": "Mercury_1", "question": QUESTION, "choices": {"text": CHOICES, "label": list("ABCD")}},
    "arc_raw": {"id": "Mercury_1", "question": {"stem": QUESTION, "choices": [{"text": c, "label": "A"} for c in CHOICES]}},
    "truthfulqa": {"Question": QUESTION, "Best Answer": "carbon dioxide"},
    "truthfulqa_mc": {"question": QUESTION, "mc1_targets": {"choices": CHOICES, "labels": [1, 0, 0, 0]}},
    "gsm8k": {"question": QUESTION, "answer": "#### 4"},
    "human_eval": {"task_id": "HumanEval/3", "prompt": QUESTION, "test": "assert"},
    "gate_suite": {"id": "q1", "context": QUESTION, "choices": CHOICES, "answer": 0},
    "safety_suite": {"id": 1, "prompt": QUESTION, "harmful": False},
    "harness_request": {"request_type": "loglikelihood", "doc": {"query": QUESTION, "choices": CHOICES}, "request": {"context": "x"}},
    "winogrande_schema": {"context_options": [QUESTION], "continuation": "it is so", "gold": 0},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_known_benchmarks_are_read(tmp_path, shape):
    [item] = read_items(shape, written(tmp_path, "test.jsonl", jsonl(SHAPES[shape])))
    assert item.text.startswith(QUESTION)
    asked_with_choices = any("laughing gas" in text and QUESTION in text for text in item.texts)
    has_choices = not {"truthfulqa", "gsm8k", "human_eval", "safety_suite", "winogrande_schema"} & {shape}
    assert asked_with_choices == has_choices


def test_items_are_called_by_their_ids_or_by_their_place(tmp_path):
    rows = [{"id": f"q{n}", "question": f"{QUESTION} {n}"} for n in range(3)]
    assert [i.item_id for i in read_items("b", written(tmp_path, "b.jsonl", jsonl(*rows)))] == ["q0", "q1", "q2"]
    rows[2]["id"] = "q0"
    assert [i.item_id for i in read_items("b", written(tmp_path, "b.jsonl", jsonl(*rows)))][2] == "b.jsonl#2"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "mac_roman"])
def test_separated_files_of_every_hand(tmp_path, separator, encoding):
    asked = "Whose leaves are they, the plant\u2019s or the sun\u2019s \u2013 and why would you say so?"
    content = f'answer{separator}question{separator}\n0{separator}"{asked}"{separator}\n'
    [item] = read_items("b", written(tmp_path, "b.csv", content.encode(encoding)))
    assert item.text == asked


def test_mmlu_as_it_is_published(tmp_path):
    content = f'"{QUESTION}",{",".join(CHOICES)},A\n"{QUESTION} Really?",{",".join(CHOICES)},B\n'
    first, _ = read_items("mmlu", written(tmp_path, "data/test/biology_test.csv", content))
    assert first.texts == (QUESTION, f"{QUESTION}\n{' '.join(CHOICES)}")


def test_parquet_and_arrow_folders(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"question": [QUESTION], "choices": [CHOICES]})
    (tmp_path / "test").mkdir()
    pq.write_table(table, tmp_path / "test/a.parquet")
    with pa.ipc.new_stream(tmp_path / "test/data-00000-of-00001.arrow", table.schema) as sink:
        sink.write_table(table)
    written(tmp_path, "test/state.json", '{"question": "no item"}')
    with pa.ipc.new_file(tmp_path / "test/file.arrow", table.schema) as sink:
        sink.write_table(pa.table({"question": [QUESTION + " And when?"], "choices": [CHOICES]}))
    assert [i.text for i in read_items("b", files(tmp_path))] == [QUESTION, QUESTION + " And when?"]


def test_packed_json_of_three_kinds(tmp_path):
    written(tmp_path, "a.jsonl.gz", gzip.compress(jsonl({"question": "one " + QUESTION}).encode()))
    written(tmp_path, "b.json", json.dumps({"canary": "x", "examples": [{"input": "two " + QUESTION}]}))
    written(tmp_path, "c.json", jsonl({"question": "three " + QUESTION}, {"question": "four " + QUESTION}))
    assert [i.text.split()[0] for i in read_items("b", files(tmp_path))] == ["one", "two", "three", "four"]


def test_only_the_scored_split_is_read(tmp_path):
    for split in ("train", "validation", "test"):
        written(tmp_path, f"{split}-00000-of-00001.jsonl", jsonl({"question": f"{split} {QUESTION}", "label": 1}))
    assert [i.text.split()[0] for i in read_items("b", files(tmp_path))] == ["test"]
    (tmp_path / "test-00000-of-00001.jsonl").unlink()
    assert [i.text.split()[0] for i in read_items("b", files(tmp_path))] == ["validation"]


def test_a_test_split_without_labels_brings_the_validation_split(tmp_path):
    written(tmp_path, "hellaswag_val.jsonl", jsonl({"ctx": f"val {QUESTION}", "label": 2}))
    written(tmp_path, "hellaswag_test.jsonl", jsonl({"ctx": f"test {QUESTION}", "label": ""}))
    assert [i.text.split()[0] for i in read_items("b", files(tmp_path))] == ["test", "val"]


def test_what_cannot_be_read_is_refused_with_the_cure(tmp_path):
    with pytest.raises(DataError, match="holds no rows: the folder is empty"):
        read_items("mmlu", {})
    with pytest.raises(DataError, match=r"holds no rows: 1 files \(LICENSE\)"):
        read_items("mmlu", written(tmp_path / "a", "LICENSE", "MIT"))
    with pytest.raises(DataError, match="has no column with a question: goal, target"):
        read_items("harms", written(tmp_path / "b", "x.csv", "goal,target\nDo it,Sure\n"))
    with pytest.raises(DataError, match=r"x\.jsonl cannot be read: line 2"):
        read_items("b", written(tmp_path / "c", "x.jsonl", jsonl({"question": QUESTION}) + "{broken\n"))
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        read_items("b", written(tmp_path / "d", "x.parquet", b"PAR1 or not"))
    with pytest.raises(DataError, match="not an object"):
        read_items("b", written(tmp_path / "e", "x.json", '["a", "b"]'))


def test_an_index_is_made_once_and_again_when_an_item_changes(home, store, tmp_path):
    benchmark = Benchmark(name="bio", uri="somewhere")
    asked = written(tmp_path / "bench", "test.jsonl", jsonl(SHAPES["mmlu"]))
    first = index_of(store, benchmark, asked)
    assert first.manifest.counts["items"] == 1
    said = []
    assert index_of(store, Benchmark(name="bio", uri="elsewhere"), asked, listener=said.append).ref == first.ref
    assert "reused" in said[0].text
    changed = written(tmp_path / "bench", "test.jsonl", jsonl(SHAPES["mmlu"] | {"question": QUESTION + " Why?"}))
    assert index_of(store, benchmark, changed).ref != first.ref
    assert (
        index_of(store, benchmark, written(tmp_path / "bench", "README.md", "read me")).ref
        == index_of(store, benchmark, changed).ref
    )


def test_an_opened_index_finds_what_the_made_one_finds(home, store, tmp_path):
    rows = [SHAPES["mmlu"], {"question": "What is a leaf?"}, {"question": "What does a leaf of a tree do all day?"}]
    asked = written(tmp_path / "bench", "test.jsonl", jsonl(*rows))
    made = index_of_items("bio", read_items("bio", asked))
    opened = open_index(index_of(store, Benchmark(name="bio", uri="x"), asked))
    texts = [
        f"Look: {QUESTION} Yes.",
        "What is a leaf?",
        "So what does a leaf of a tree do all day? It eats.",
        "nothing",
    ]
    hits = [Scanner([i], threshold=0.5).scan(texts) for i in (made, opened)]
    assert hits[0] == hits[1] and [h.row for h in hits[0]] == [0, 1, 2]
    assert isinstance(opened.arrays.grams.base, np.memmap), "mapped, so that processes share it"


def test_words_that_many_items_share_do_not_count_as_a_part_of_one(tmp_path):
    shared = (
        "Read the following statement with care and say whether it is true or false in the year of its publication, "
    )
    rows = [{"question": f"{shared} number {n}: a{n} b{n} c{n} d{n} e{n} f{n} g{n} h{n}"} for n in range(40)]
    scanner = Scanner([index_of_items("b", read_items("b", written(tmp_path, "b.jsonl", jsonl(*rows))))], threshold=0.5)
    assert {
        h.item_id
        for h in scanner.scan([f"{shared} and then something else entirely, which is a longer text about " + "x " * 40])
    } <= {""}
    assert [h.item_id for h in scanner.scan([rows[7]["question"]])] == ["b.jsonl#7"]
