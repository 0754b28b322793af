"""From spilled rows to windows: every token, span and row id in its place, whatever the blocks and shards; fast reads say the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.encode import shards as shards_module
from ft_pipeline.encode.artifact import cached_windows, read_windows, shard_names
from ft_pipeline.encode.columns import ColumnsDigest
from ft_pipeline.encode.gather import gather, spilled
from ft_pipeline.encode.pack import pack
from ft_pipeline.encode.shards import index_table, shards_of, windows_table
from ft_pipeline.encode.spill import Draft, write_block
from ft_pipeline.recipe import Encode
from ft_pipeline_tests import tiny

CAP = 32
ROW = st.tuples(st.lists(st.integers(0, 999), min_size=2, max_size=CAP), st.integers(1, CAP), st.integers(1, CAP)).map(
    lambda r: (r[0], ((1, min(len(r[0]), r[1] + 1)),) if r[2] > r[1] else ((len(r[0]) - 1, len(r[0])),))
)
BLOCKS = st.lists(st.lists(ROW, max_size=12), max_size=4)


def spill(folder, blocks):
    """The blocks on disk, and their rows as (row id, ids, trained token places)."""
    paths, rows = [], []
    for number, block in enumerate(blocks):
        draft = Draft()
        for place, (ids, spans) in enumerate(block):
            draft.add(f"r{number}-{place}", 0, (ids, spans))
            rows.append((f"r{number}-{place}", ids, [n for a, b in spans for n in range(a, b)]))
        paths.append(folder / f"{number}.arrow")
        write_block(paths[-1], draft)
    return spilled(paths), rows


@given(BLOCKS, st.integers(0, 3), st.sampled_from([1, 40, 10_000]))
@settings(max_examples=60)
def test_windows_hold_every_row_whole_with_its_spans(tmp_path_factory, blocks, seed, shard_tokens):
    encoded, rows = spill(tmp_path_factory.mktemp("blocks"), blocks)
    packing = pack(encoded.lengths, window_tokens=CAP, seed=seed)
    seen, numbers = [], [number for window in packing for number in window]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "SHARD_TOKENS", shard_tokens)
        for shard in shards_of("train", (encoded, packing)):
            places = index_table("train", shard).to_pylist()
            for window_number, window in enumerate(windows_table(shard).to_pylist()):
                assert len(window["input_ids"]) <= CAP
                edges = window["loss_spans"]
                trained = {n for a, b in zip(edges[::2], edges[1::2], strict=True) for n in range(a, b)}
                start = 0
                for row_id, size in zip(window["row_ids"], window["seq_lengths"], strict=True):
                    mine = [n - start for n in sorted(trained) if start <= n < start + size]
                    seen.append((row_id, window["input_ids"][start : start + size], mine))
                    place = places.pop(0)
                    assert (place["row_id"], place["window"], place["start"], place["tokens"]) == (
                        row_id, window_number, start, size,
                    )  # fmt: skip
                    assert place["trained_tokens"] == len(mine) and place["shard"] == shard.name
                    start += size
    assert seen == [rows[number] for number in numbers]
    assert encoded.trained.tolist() == [len(trained) for _, _, trained in rows]


def test_gathering_no_rows_gives_none(tmp_path):
    encoded, _ = spill(tmp_path, [[([1, 2], ((1, 2),))]])
    assert len(gather(encoded, np.zeros(0, np.int64)).ids) == 0


@given(st.lists(st.integers(0, 6), max_size=5))
def test_a_digest_is_of_the_rows_and_not_of_the_parts(cuts):
    table = pa.table(
        {"n": [1, 2, 3, 4, 5, 6], "t": ["", "a", "bc", "", "d", "e"], "l": [[1], [], [2, 3], [4], [], [5]]}
    )
    whole, parts = ColumnsDigest(), ColumnsDigest()
    whole.add(table)
    borders = [0, *sorted(cuts), 6]
    for start, end in pairwise(borders):
        parts.add(table.slice(start, end - start))
    assert parts.hexdigest() == whole.hexdigest()


def test_a_digest_tells_where_a_string_or_list_ends():
    tables = [{"t": ["ab", "c"]}, {"t": ["a", "bc"]}, {"t": [[1, 2], [3]]}, {"t": [[1], [2, 3]]}, {"u": ["ab", "c"]}]
    digests = set()
    for columns in tables:
        digest = ColumnsDigest()
        digest.add(pa.table(columns))
        digests.add(digest.hexdigest())
    assert len(digests) == len(tables)


@pytest.fixture
def shards(store, tmp_path):
    base = tiny.publish_base(store, tiny.tokenizer_folder(tmp_path / "base"))
    curated = tiny.publish_curated(store, tiny.chat_rows(900), validation=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "SHARD_TOKENS", 9000)
        return tiny.publish_shards(store, curated, base)


def as_values(windows):
    return [(w.ids.tolist(), w.spans, w.lengths, w.row_ids) for w in windows]


def test_cached_windows_are_the_windows_by_number(shards, tmp_path):
    assert len(shard_names(shards, "train")) > 2
    read = as_values(read_windows(shards, "train"))
    cached = cached_windows(shards, "train", tmp_path / "cache")
    assert as_values(cached) == read and len(cached) == len(read) > 256
    assert as_values([cached[n] for n in (300, 0, -1, 257)]) == [read[n] for n in (300, 0, -1, 257)]
    assert as_values(cached[5:9]) == read[5:9]
    with pytest.raises(IndexError):
        cached[len(read)]


def test_the_cache_is_made_once_and_leaves_nothing_half_made(shards, tmp_path):
    cached_windows(shards, "train", tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    cached_windows(shards, "train", tmp_path)
    assert len(cached_windows(shards, "validation", tmp_path)) == sum(1 for _ in read_windows(shards, "validation"))
    assert made == {path: path.stat().st_mtime_ns for path in made} and not list(tmp_path.glob(".*"))


def test_a_split_document_is_in_the_index_piece_by_piece(store, tmp_path):
    base = tiny.publish_base(store, tiny.tokenizer_folder(tmp_path / "base"))
    rows = [{"text": " ".join(tiny.SENTENCES)}, *({"text": s} for s in tiny.SENTENCES)]
    made = tiny.publish_shards(
        store, tiny.publish_curated(store, rows, shape="text"), base, encode=Encode(window_tokens=16, overlong="split")
    )
    index = pq.read_table(made.file("rows.parquet")).to_pylist()
    long = [e for e in index if e["row_id"] == max(index, key=lambda e: e["piece"])["row_id"]]
    assert sorted(e["piece"] for e in long) == list(range(len(long))) and len(long) > 3
    ledger = {e["row_id"]: e for e in pq.read_table(made.file("ledger.parquet")).to_pylist()}
    assert ledger[long[0]["row_id"]]["reason"] == "split" and ledger[long[0]["row_id"]]["action"] == "changed"
    assert made.manifest.counts["rows"] == len({e["row_id"] for e in index}) == len(rows)
    # a text trains all its tokens but the first, however often it is split
    assert made.manifest.counts["trained_tokens"] == made.manifest.counts["tokens"] - len(index)
