"""From raw bytes to three splits and a ledger: nothing disappears, nothing depends on the order, nothing is computed twice."""

from __future__ import annotations

import json
import random
from collections import Counter

import polars as pl
import pytest

from ft_pipeline.acquire import base_model, dataset
from ft_pipeline.acquire.artifact import control_tokens
from ft_pipeline.curate.artifact import EDGE_COLUMNS, LEDGER_COLUMNS, ROW_COLUMNS, SPLITS, rows_of, statistics_of
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.curate.splits import leaks, split_of
from ft_pipeline.errors import DataError, RecipeError
from ft_pipeline.recipe import BaseModel, Curate, Dataset, NearDuplicates, Splits

NOUNS = [
    "archive",
    "socket",
    "decimal",
    "logger",
    "thread",
    "regex",
    "date",
    "queue",
    "heap",
    "matrix",
    "clock",
    "mail",
]


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def sentence(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice(NOUNS)} {rng.randrange(1000)}" for _ in range(20))


GOOD = [chat(sentence(i), sentence(-i)) for i in range(1, 80)]
NEAR = [chat(r["messages"][0]["content"] + ".", r["messages"][1]["content"]) for r in GOOD[:9]]
BAD = [
    {"messages": [{"role": "asistant", "content": "x"}]},
    chat("q", " "),
    {"messages": [{"role": "user", "content": "q"}]},
    {"other": 1},
]
ROWS = [*GOOD, *GOOD[:5], *NEAR, *BAD]


@pytest.fixture
def curated(home, store, tmp_path):
    """Writes rows, acquires and curates them."""

    def make(rows, config=None, *, base=None, layout="auto", messages=None):
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        raw = dataset.acquire(Dataset(uri=str(path)), settings=home, store=store)
        listener = (messages if messages is not None else []).append
        tokens = control_tokens(store, base) if base else ()
        dataset_ = Dataset(uri=str(path), layout=layout)
        curation = Curation(config=config or Curate(), raw=raw.ref, tokens=tokens, dataset=dataset_)
        return curate(curation, store=store, listener=listener)

    return make


def kept_ids(artifact):
    return sorted(row["row_id"] for split in SPLITS for row in rows_of(artifact, split))


def ledger(artifact):
    return pl.read_parquet(artifact.file("ledger.parquet")).to_dicts()


def test_every_row_is_in_a_split_or_in_the_ledger(curated):
    made = curated([*ROWS, b"{not json"])
    counts = made.manifest.counts
    dropped = [e for e in ledger(made) if e["action"] == "dropped"]
    assert counts["rows_in"] == len(ROWS) + 1 == counts["rows_kept"] + len(dropped)
    assert counts["rows_kept"] == counts["train"] + counts["validation"] + counts["holdout"] == len(GOOD)
    assert Counter(e["reason"] for e in dropped) == {
        "exact_duplicate": 5, "near_duplicate": 9, "unknown_role": 1, "empty_turn": 1, "no_final_assistant": 1,
        "unknown_layout": 1, "not_json": 1,
    }  # fmt: skip
    assert statistics_of(made)["dropped_by_reason"] == dict(sorted(Counter(e["reason"] for e in dropped).items()))
    assert not {e["row_id"] for e in dropped} & set(kept_ids(made))
    assert len({e["row_id"] for e in dropped}) == len(dropped)


def test_the_ledger_names_place_value_and_the_row_that_stays(curated):
    made = curated(ROWS)
    by_reason = {e["reason"]: e for e in ledger(made)}
    wrong = by_reason["unknown_role"]
    assert wrong["origin"] == f"rows.jsonl:{len(ROWS) - 3}"
    assert json.loads(wrong["evidence"]) == {"path": "messages[0].role", "value": "asistant"}
    assert "asistant" in wrong["excerpt"]
    near = json.loads(by_reason["near_duplicate"]["evidence"])
    assert near["kept_id"] in kept_ids(made)
    assert near["edge"]["prompt_j"] >= 0.9
    exact = json.loads(by_reason["exact_duplicate"]["evidence"])
    assert exact["kept_origin"].startswith("rows.jsonl:")


def test_files_have_the_columns_of_the_contract(curated):
    made = curated(ROWS)
    for split in SPLITS:
        assert tuple(pl.read_parquet_schema(made.file(f"{split}.parquet"))) == ROW_COLUMNS
    assert tuple(pl.read_parquet_schema(made.file("ledger.parquet"))) == LEDGER_COLUMNS
    assert tuple(pl.read_parquet_schema(made.file("edges.parquet"))) == EDGE_COLUMNS
    origins = [int(row["origin"].split(":")[1]) for row in rows_of(made, "train")]
    assert origins == sorted(origins)
    assert all(m["content"] for row in rows_of(made, "train") for m in row["content"]["messages"])


def test_the_same_rows_are_not_curated_twice(curated, store):
    messages: list = []
    first = curated(ROWS)
    again = curated(ROWS, messages=messages)
    assert first.ref == again.ref
    assert "reused" in messages[-1].text
    assert len(list(store.all("curated_dataset"))) == 1
    assert curated(ROWS, Curate(control_tokens="escape")).ref != first.ref


def test_made_again_from_nothing_it_is_the_same_artifact(curated, store):
    import shutil

    first = curated(ROWS)
    shutil.rmtree(first.folder)
    assert curated(ROWS).ref == first.ref


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_rows_keep_their_ids_splits_and_number(curated, seed):
    first = curated(ROWS)
    after = curated(random.Random(seed).sample(ROWS, len(ROWS)))
    assert kept_ids(after) == kept_ids(first)
    for split in SPLITS:
        assert {r["row_id"] for r in rows_of(first, split)} == {r["row_id"] for r in rows_of(after, split)}
    assert after.manifest.counts == first.manifest.counts


def test_appended_rows_move_no_row_to_another_split(curated):
    before = curated(GOOD[:40])
    after = curated(GOOD)
    for split in SPLITS:
        assert {r["row_id"] for r in rows_of(before, split)} <= {r["row_id"] for r in rows_of(after, split)}


def test_no_variant_straddles_two_splits(curated):
    variants = [chat(f"{r['messages'][0]['content']} {i}", sentence(900 + i)) for i, r in enumerate(GOOD)]
    made = curated([*GOOD, *variants], Curate(splits=Splits(validation=0.3, holdout=0.3)))
    assert made.manifest.counts["rows_kept"] == 2 * len(GOOD)
    assert leaks(made) == {}
    split_by_first_words = {}
    for split in SPLITS:
        for row in rows_of(made, split):
            words = row["content"]["messages"][0]["content"][:60]
            assert split_by_first_words.setdefault(words, split) == split


def test_split_shares_are_met():
    names = [f"r{i:016x}" for i in range(20_000)]
    found = Counter(split_of(name, Splits(validation=0.05, holdout=0.1)) for name in names)
    assert abs(found["holdout"] / 20_000 - 0.1) < 0.01
    assert abs(found["validation"] / 20_000 - 0.05) < 0.01


def test_too_many_bad_rows_stop_the_run_with_counts_and_examples(curated, store):
    with pytest.raises(DataError) as caught:
        curated([*GOOD[:3], *BAD, *BAD])
    text = str(caught.value)
    assert "8 of 11 rows (73%)" in text and "unknown_role 2" in text
    assert "rows.jsonl:4: unknown_role" in text and text.count("rows.jsonl:") == 3
    assert "Cure:" in text
    assert not list(store.all("curated_dataset"))
    assert curated([*GOOD[:3], *BAD], Curate(max_rejected_share=0.9, splits=Splits(validation=0, holdout=0)))


@pytest.mark.parametrize("rows", [[], [b"", b"  "], BAD])
def test_nothing_left_is_an_error(curated, rows):
    with pytest.raises(DataError):
        curated(rows or [b""], Curate(max_rejected_share=1.0))


def test_a_threshold_out_of_range_is_refused(curated):
    with pytest.raises(RecipeError, match=r"threshold 9\.0"):
        curated(GOOD, Curate(near_duplicates=NearDuplicates(threshold=9.0)))


def test_a_pinned_layout_rejects_other_rows(curated):
    made = curated([*GOOD, {"text": "plain"}], layout="chat")
    assert [e["reason"] for e in ledger(made)] == ["unknown_layout"]
    assert statistics_of(made)["layouts"] == {"chat": len(GOOD)}


@pytest.fixture
def base(home, store, tmp_path):
    """A base model with one control token, and a way to make its next version."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    folder = tmp_path / "base"
    folder.mkdir()

    def make(weight: bytes, *tokens: str):
        added = [{"content": token, "special": True} for token in tokens]
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weight)
        return base_model.acquire(BaseModel(uri=str(folder)), settings=home, store=store).ref

    return make


def test_control_tokens_are_rejected_or_broken(curated, base):
    ref = base(b"a", "<|end|>")
    rows = [*GOOD, chat("stop <|end|> here " + sentence(7000), sentence(7001))]
    assert [e["reason"] for e in ledger(curated(rows, base=ref))] == ["control_token"]
    made = curated(rows, Curate(control_tokens="escape"), base=ref)
    changed = ledger(made)
    assert [(e["action"], e["reason"]) for e in changed] == [("changed", "control_token")]
    assert json.loads(changed[0]["evidence"]) == {"path": "messages[0].content", "value": "<|end|>"}
    assert made.manifest.counts["rows_kept"] == len(rows)
    texts = [row["content"]["messages"][0]["content"] for split in SPLITS for row in rows_of(made, split)]
    assert any("<\u200b|end|>" in text for text in texts) and not any("<|end|>" in text for text in texts)


def test_a_new_base_with_the_same_tokenizer_curates_nothing_again(curated, base):
    first = curated(GOOD, base=base(b"a", "<|end|>"))
    assert curated(GOOD, base=base(b"b", "<|end|>")).ref == first.ref
    assert curated(GOOD, base=base(b"b", "<|end|>", "<|x|>")).ref != first.ref
