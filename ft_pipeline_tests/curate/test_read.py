"""Rows out of files of every kind, damaged ones included, in bounded memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.curate import read
from ft_pipeline.curate.read import raw_rows
from ft_pipeline.curate.unpack import bounded_lines
from ft_pipeline.errors import DataError

ROWS = [{"text": f"row {i} \u00e4\U0001f600", "n": [i, {"a": None}]} for i in range(300)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS).encode()


def rows(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return list(raw_rows({name: path}, lambda _n: None))


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
    assert found[1].origin == f"{name}:2"


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
    found = list(raw_rows({"a.parquet": tmp_path / "a.parquet"}, lambda _n: None))
    assert [r.value for r in found] == [{"messages": [{"role": "user", "content": "a"}]}, {"text": "b"}]


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
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 4000 if reason == "too_long_line" else 1 << 20)
    good = b'{"text": "good"}'
    found = rows(tmp_path, "a.jsonl", b"\n".join([good, line, b"", good]))
    assert [r.rejection.reason if r.rejection else None for r in found] == [None, reason, None]
    assert found[1].origin == "a.jsonl:2" and found[2].origin == "a.jsonl:4"
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
