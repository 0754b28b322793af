"""Rows of a benchmark as people keep them: JSON, JSON lines, CSV, TSV, Parquet, Arrow; of the split that is scored."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".gz", ".zst")
NO_ROWS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "manifest.tsv"}
SPLITS = (("test",), ("validation", "valid", "val"), ("dev",))
"""The first of these that a folder has is the split that is scored."""
LABELS = ("label", "answer", "gold", "answerkey", "answer_key")
HIDDEN = (None, "", -1, "-1")
TYPOGRAPHIC = set("\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00e9\u00b0")
HEADERLESS = ("question", "A", "B", "C", "D", "answer")
"""Columns of MMLU's own CSV files, which have no header."""


def is_benchmark_file(name: str) -> bool:
    """True when the name says that rows may be in it."""
    return _suffix(name) in FORMATS and name.rsplit("/", 1)[-1].lower() not in NO_ROWS


def rows(benchmark: str, files: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`file#number` and row, number from 0, of the scored split. `files`: name relative to the benchmark's folder -> path.

    With labels that are hidden in the test split, the validation split is what people score, so it is read as well.
    Raises DataError when no file holds rows, or one cannot be read.
    """
    usable = {name: files[name] for name in sorted(files) if is_benchmark_file(name)}
    if not usable:
        raise DataError(
            f"benchmark {benchmark} holds no rows: {_listed(files)}",
            why=f"Items are read from {', '.join(FORMATS)} (also .gz, .zst).",
            cure="mend its `uri` in the recipe's contamination section",
        )
    test, validation, dev = (_of_split(usable, names) for names in SPLITS)
    found = list(_all_rows(test or validation or dev or usable))
    if test and validation and found and all(_is_hidden(row) for _, row in found):
        found += _all_rows(validation)
    yield from found


def _all_rows(files: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, path in files.items():
        for number, row in enumerate(_rows(name, path)):
            if not isinstance(row, dict):
                raise DataError(f"{name}: item {number} is {str(row)[:60]!r}, not an object with columns")
            yield f"{name}#{number}", row


def _of_split(files: Mapping[str, Path], names: tuple[str, ...]) -> dict[str, Path]:
    pattern = re.compile(rf"(^|[/_.\-])({'|'.join(names)})([/_.\-]|$)", re.IGNORECASE)
    return {name: path for name, path in files.items() if pattern.search(name)}


def _is_hidden(row: Mapping[str, Any]) -> bool:
    labels = [value for key, value in row.items() if key.lower() in LABELS]
    return bool(labels) and all(value in HIDDEN for value in labels if not isinstance(value, list | dict))


def _rows(name: str, path: Path) -> list[Any]:
    suffix = _suffix(name)
    try:
        if suffix in (".parquet", ".arrow"):
            return _table(path, suffix).to_pylist()
        text = _text(_unpacked(path, name))
        if suffix in (".csv", ".tsv"):
            return _separated(text)
        return _lines(text) if suffix != ".json" else _json(text)
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise DataError(
            f"benchmark file {name} cannot be read: {str(error).splitlines()[0]}",
            why="Items that are not read would be trained on unseen.",
            cure="mend the file, or name only the files that hold items",
        ) from None


def _table(path: Path, suffix: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if suffix == ".parquet":
        return pq.read_table(path)
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


def _unpacked(path: Path, name: str) -> bytes:
    content = path.read_bytes()
    if name.lower().endswith(".gz"):
        return gzip.decompress(content)
    if name.lower().endswith(".zst"):
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True) as source:
            return source.read()
    return content


def _text(content: bytes) -> str:
    """Decoded text. What is neither UTF-8 nor UTF-16 is Windows or Mac Roman, whichever gives more quotes and dashes."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        readings = [content.decode(encoding, "replace") for encoding in ("cp1252", "mac_roman")]
        return max(readings, key=lambda text: sum(c in TYPOGRAPHIC for c in text))


def _separated(text: str) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 26)
    head = text.split("\n", 1)[0]
    separator = max((",", ";", "\t"), key=head.count)
    table = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(row)]
    if not table:
        return []
    if len(table[0]) == len(HEADERLESS) and table[0][-1].strip() in ("A", "B", "C", "D"):
        return [dict(zip(HEADERLESS, row, strict=False)) for row in table]
    return [{k.strip(): v for k, v in zip(table[0], row, strict=False) if k.strip()} for row in table[1:]]


def _json(text: str) -> list[Any]:
    """A list of rows, an object that holds one list of rows, or JSON lines under the wrong name."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _lines(text)
        raise
    if isinstance(value, list):
        return value
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    return lists[0] if len(lists) == 1 else [value]


def _lines(text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None
    return found


def _suffix(name: str) -> str:
    plain = name.lower()
    for end in PACKED:
        plain = plain.removesuffix(end)
    return "." + plain.rsplit(".", 1)[-1] if "." in plain else ""


def _listed(files: Mapping[str, Path]) -> str:
    return f"{len(files)} files ({', '.join(sorted(files)[:3])})" if files else "the folder is empty"
