"""Encoding a dataset: windows that trace to rows, a ledger of what was left out, the same bytes for the same inputs."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.encode.check import mask_fault
from ft_pipeline.encode.figures import length_histogram, samples_picture, split_table
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Encode
from ft_pipeline_tests import tiny

LONG = {"messages": [{"role": "user", "content": "again? " * 90}, {"role": "assistant", "content": "zipfile"}]}
EMPTY = {"messages": [{"role": "user", "content": "which module is it?"}]}


@pytest.fixture
def base(store, tmp_path):
    return tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))


def facts_of(shards):
    return json.loads(shards.file("statistics.json").read_text())


def test_every_row_is_in_one_window_where_the_index_says(store, base):
    curated = tiny.publish_curated(store, tiny.chat_rows(60), validation=6)
    shards = tiny.publish_shards(store, curated, base)
    windows = {split: list(read_windows(shards, split)) for split in ("train", "validation")}
    index = pq.read_table(shards.file("rows.parquet")).to_pylist()
    assert Counter(e["row_id"] for e in index) == Counter(
        row
        for split in ("train", "validation")
        for row in pq.read_table(curated.file(f"{split}.parquet"))["row_id"].to_pylist()
    )
    for entry in index:
        window = windows[entry["split"]][entry["window"]]
        place = window.row_ids.index(entry["row_id"])
        assert (sum(window.lengths[:place]), window.lengths[place]) == (entry["start"], entry["tokens"])
    assert all(len(w.ids) <= 128 for split in windows.values() for w in split)
    assert sum(w.trained_tokens for w in windows["train"]) == facts_of(shards)["trained_tokens"]


def test_statistics_say_how_full_and_how_much_is_trained(store, base):
    facts = facts_of(tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(60)), base))
    assert facts["fill"] > 0.8 and 0 < facts["trained_share"] < 0.5
    assert facts["end_of_turn"] == {"rows": 60, "supervised": 60}
    assert sum(facts["length_histogram"]["rows"]) == 60
    assert facts["road"] == "generation_markers"
    assert mask_fault(facts, loss="assistant") is None


def test_what_is_left_out_is_in_the_ledger_with_a_reason(store, base):
    curated = tiny.publish_curated(store, [*tiny.chat_rows(20), LONG, EMPTY])
    ledger = pq.read_table(tiny.publish_shards(store, curated, base).file("ledger.parquet")).to_pylist()
    assert [(e["origin"], e["action"], e["stage"], e["reason"]) for e in ledger] == [
        ("tiny.jsonl:21", "dropped", "encode", "overlong"),
        ("tiny.jsonl:22", "dropped", "encode", "no_trained_token"),
    ]
    assert json.loads(ledger[0]["evidence"])["window_tokens"] == 128


def test_a_truncated_row_is_cut_after_masking_and_written_down(store, base):
    turns = [*tiny.chat_rows(1)[0]["messages"], *LONG["messages"]]
    curated = tiny.publish_curated(store, [*tiny.chat_rows(20), {"messages": turns}])
    shards = tiny.publish_shards(store, curated, base, encode=Encode(window_tokens=128, overlong="truncate"))
    ledger = pq.read_table(shards.file("ledger.parquet")).to_pylist()
    assert [(e["action"], e["reason"]) for e in ledger] == [("changed", "truncated")]
    index = {e["row_id"]: e for e in pq.read_table(shards.file("rows.parquet")).to_pylist()}
    cut = index[ledger[0]["row_id"]]
    assert cut["tokens"] == 128 and 0 < cut["trained_tokens"] < 20


def test_the_same_inputs_give_the_same_artifact(store, base, tmp_path):
    from ft_pipeline.store.artifacts import Store
    from ft_pipeline.store.files import Bucket

    curated = tiny.publish_curated(store, tiny.chat_rows(40), validation=4)
    first = tiny.publish_shards(store, curated, base)
    other = Store(Bucket(str(tmp_path / "other")), tmp_path / "work")
    again = tiny.publish_shards(
        other,
        tiny.publish_curated(other, tiny.chat_rows(40), validation=4),
        tiny.publish_base(other, tmp_path / "base"),
    )
    assert again.ref == first.ref


def test_new_weights_with_the_same_tokenizer_leave_the_shards_as_they_are(store, base, tmp_path):
    curated = tiny.publish_curated(store, tiny.chat_rows(20))
    bumped = tiny.publish_base(store, tiny.base_folder(tmp_path / "bumped", seed=1))
    assert bumped.ref != base.ref
    assert tiny.publish_shards(store, curated, bumped).ref == tiny.publish_shards(store, curated, base).ref


def test_another_template_gives_other_shards(store, base, tmp_path):
    curated = tiny.publish_curated(store, tiny.chat_rows(20))
    plain = tiny.publish_base(store, tiny.base_folder(tmp_path / "plain", template=tiny.PLAIN_TEMPLATE))
    shards = tiny.publish_shards(store, curated, plain)
    assert shards.ref.fingerprint != tiny.publish_shards(store, curated, base).ref.fingerprint
    assert facts_of(shards)["road"] == "text_prefixes"


def test_a_template_that_cannot_be_masked_refuses_the_dataset_with_the_cure(store, tmp_path):
    rewriting = tiny.PLAIN_TEMPLATE.replace("<|assistant|>{%- endif -%}", "<|assistant|>(now) {%- endif -%}")
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "rewriting", template=rewriting))
    with pytest.raises(DataError, match="no loss mask for 20 rows") as refused:
        tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base)
    assert "{% generation %}" in refused.value.cure
    assert not list(store.all("packed_shards"))


def test_no_row_left_is_refused(store, base):
    with pytest.raises(DataError, match="no row is left"):
        tiny.publish_shards(store, tiny.publish_curated(store, [LONG]), base)


def test_a_template_with_the_stop_token_outside_the_markers_fails_the_check(store, tmp_path):
    endless = tiny.TEMPLATE.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "endless", template=endless))
    facts = facts_of(tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base))
    assert "would not learn to stop" in mask_fault(facts, loss="assistant")


def test_training_every_token_of_chat_rows_by_mistake_fails_the_check(store, base):
    curated = tiny.publish_curated(store, tiny.chat_rows(20))
    facts = facts_of(tiny.publish_shards(store, curated, base, encode=Encode(window_tokens=128, loss="all")))
    assert mask_fault(facts, loss="all") is None
    assert "every token is trained" in mask_fault({**facts, "trained_tokens": facts["tokens"]}, loss="assistant")


def test_the_metadata_page_shows_lengths_and_three_rows_with_their_trained_tokens(store, base):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base)
    facts, samples = facts_of(shards), json.loads(shards.file("sample.json").read_text())
    assert [s["tokens"] for s in samples] == sorted(s["tokens"] for s in samples) and len(samples) == 3
    for sample in samples:
        text, trained = ("".join(t for t, on in sample["pieces"] if on or both) for both in (True, False))
        assert text.startswith("<|user|>which module is it?") and trained.count("<|end|>") == text.count(
            "<|assistant|>"
        )
    assert samples_picture(samples).startswith("![trained tokens in green](data:image/png;base64,")
    assert "| train | 20 |" in split_table(facts["splits"])
    assert length_histogram(facts["length_histogram"], window_tokens=128).startswith(
        "![rows by length](data:image/png;base64,"
    )


def test_text_rows_train_everything(store, base):
    curated = tiny.publish_curated(store, [{"text": s} for s in tiny.SENTENCES], shape="text")
    facts = facts_of(tiny.publish_shards(store, curated, base))
    assert facts["trained_tokens"] == facts["tokens"] - facts["rows"]
    assert mask_fault(facts, loss="assistant") is None
