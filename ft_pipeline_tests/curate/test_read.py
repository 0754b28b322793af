"""Rows out of files of every kind, damaged ones included, in bounded memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft_pipeline.curate import blocks
from ft_pipeline.curate.read import raw_rows
from ft_pipeline.curate.unpack import bounded_lines
from ft_pipeline.errors import DataError

ROWS = [{"text": f"row {i} \u00e4\U0001f600", "n": [i, {"a": None}]} for i in range(300)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS).encode()


def rows(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return [row for _, row in placed(tmp_path, name)]


def placed(tmp_path, name):
    """Rows with their origin."""
    return list(raw_rows({name: tmp_path / name}, lambda _n: None))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES.replace(b"\n", b"\r\n")),
        ("a.json", LINES),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.rstrip()),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.gz", gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:])),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES[:5000]) + zstandard.compress(LINES[5000:])),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\n " + json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ],
)
def test_files(tmp_path, name, content):
    found = rows(tmp_path, name, content)
    assert [r.value for r in found] == ROWS
    assert placed(tmp_path, name)[1][0] == f"{name}:2"


def test_parquet_reads_as_the_same_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_pylist(
            [
                {"messages": [{"role": "user", "content": "a", "name": None}], "text": None, "x": None},
                {"text": "b", "x": float("nan")},
            ]
        ),
        tmp_path / "a.parquet",
    )
    found = placed(tmp_path, "a.parquet")
    assert [r.value for _, r in found] == [{"messages": [{"role": "user", "content": "a"}]}, {"text": "b"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not_json"),
        (b"word", "not_json"),
        (b'{"text": NaN}', "not_json"),
        (b'{"a": ' + b"[" * 100_000, "not_json"),
        (b"[1, 2]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b'{"text": "a", "text": "b"}', "duplicate_key"),
        (b'{"text": "\xff\xfe"}', "invalid_utf8"),
        (b'{"text": "' + b"x" * 5000 + b'"}', "too_long_line"),
    ],
)
def test_one_bad_line_costs_one_row(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 4000 if reason == "too_long_line" else 1 << 20)
    good = b'{"text": "good"}'
    found = rows(tmp_path, "a.jsonl", b"\n".join([good, line, b"", good]))
    assert [r.rejection.reason if r.rejection else None for r in found] == [None, reason, None]
    assert [origin for origin, _ in placed(tmp_path, "a.jsonl")] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"]
    assert found[1].excerpt and len(found[1].excerpt) <= 160
    assert found[0].key == found[2].key != found[1].key


def test_nan_and_repeated_keys_in_an_array_cost_one_row(tmp_path):
    found = rows(tmp_path, "a.json", b'[{"a": NaN}, {"a": 1, "a": 2}, {"a": 1}, 7]')
    reasons = [r.rejection and r.rejection.reason.value for r in found]
    assert reasons == ["not_json", "duplicate_key", None, "not_an_object"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-9], "cannot be unpacked"),
        ("a.jsonl.gz", LINES, "cannot be unpacked"),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-9], "cannot be unpacked"),
        ("a.jsonl.zst", LINES, "cannot be unpacked"),
        ("a.json", json.dumps(ROWS).encode()[:-1], "ends in the middle"),
        ("a.json", json.dumps(ROWS).encode()[:-9], "is not JSON"),
        ("a.json", b'[{"a": 1}, {"a" 2}, {"a": 3}]', "a.json:2 is not JSON"),
        ("a.json", b'[{"a": "\xff"}]', "is not UTF-8"),
        ("a.parquet", b"PAR1junk", "not a whole Parquet file"),
    ],
)
def test_a_file_that_is_damaged_as_a_whole_is_refused(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words) as caught:
        rows(tmp_path, name, content)
    assert caught.value.cure


def test_an_endless_line_stays_out_of_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    try:
        read_max = 4 << 20
        lines = list(bounded_lines(_pieces(path), read_max))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(line.cut, line.num_bytes) for line in lines] == [(True, 100 << 20)]
    assert peak < 3 * read_max


def _pieces(path):
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece


@settings(max_examples=200)
@given(
    st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b), max_size=9), st.integers(1, 7), st.integers(1, 8)
)
def test_lines_are_the_same_however_the_bytes_are_cut(lines, cut, limit):
    content = b"\n".join(lines)
    found = list(bounded_lines(iter(content[i : i + cut] for i in range(0, len(content), cut)), limit))
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line.num_bytes for line in found] == [len(e) for e in expected]
    assert [line.cut for line in found] == [len(e) > limit for e in expected]
    assert all(line.start == e for line, e in zip(found, expected, strict=True) if not line.cut)


def cut(tmp_path, content, name="a.jsonl"):
    (tmp_path / name).write_bytes(content)
    return list(blocks.blocks("dataset", {name: tmp_path / name}, lambda _n: None, sha256={name: "0" * 64}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60).filter(lambda b: b"\n" not in b), max_size=40), st.integers(1, 50))
def test_blocks_hold_every_line_once_with_its_number(tmp_path, monkeypatch, lines, size):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 30)
    content = b"\n".join(lines)
    found = []
    for block in cut(tmp_path, content):
        long = isinstance(block.payload, blocks.Long)
        parts = [None] if long else block.payload.removesuffix(b"\n").split(b"\n")
        found += [(block.first + n, part) for n, part in enumerate(parts)]
    expected = content.removesuffix(b"\n").split(b"\n") if content else []
    assert [number for number, _ in found] == list(range(1, len(expected) + 1))
    assert all(part in (None, line) for (_, part), line in zip(found, expected, strict=True))
    assert all(len(line) > 30 for (_, part), line in zip(found, expected, strict=True) if part is None)


def test_appended_lines_leave_the_blocks_before_them_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    before = [block.digest for block in cut(tmp_path, LINES[:9000])]
    after = [block.digest for block in cut(tmp_path, LINES)]
    assert after[: len(before) - 1] == before[:-1] and len(before) > 5


def test_an_endless_line_between_others_costs_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 4000)
    good = b'{"text": "good"}\n'
    long = b'{"text": "' + b"x" * (3 << 20) + b'"}'
    found = rows(tmp_path, "a.jsonl", good * 100 + long + b"\n" + good * 2)
    assert [n for n, row in enumerate(found) if row.rejection] == [100] and len(found) == 103
    assert found[100].rejection.value == f"{len(long):,} bytes"
    assert placed(tmp_path, "a.jsonl")[102][0] == "a.jsonl:103"


def test_parquet_blocks_are_row_ranges_whatever_the_row_groups(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(blocks, "PARQUET_ROWS", 70)
    pq.write_table(pa.table({"text": [row["text"] for row in ROWS]}), tmp_path / "a.parquet", row_group_size=33)
    found = placed(tmp_path, "a.parquet")
    assert [row.value["text"] for _, row in found] == [row["text"] for row in ROWS]
    assert [origin for origin, _ in found] == [f"a.parquet:{n}" for n in range(1, 301)]
