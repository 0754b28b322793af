"""Rows to upload, and what an attacker uploads instead."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from typing import Any

import zstandard


def chat(number: int = 0, **turn: Any) -> dict[str, Any]:
    """A row as OpenAI has it."""
    said = {"role": "assistant", "content": f"Answer {number} to a question.", **turn}
    return {"messages": [{"role": "user", "content": f"Question {number}, please?"}, said]}


def jsonl(*rows: Any) -> bytes:
    """Rows as JSON lines; text and bytes as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return b"\n".join(lines) + b"\n"


def chats(count: int = 20) -> bytes:
    """So many rows, all different."""
    return jsonl(*(chat(number) for number in range(count)))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def zipped(name: str = "rows.jsonl") -> bytes:
    """A zip archive with rows in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, chats())
    return out.getvalue()


def tarred() -> bytes:
    """A tar archive with a path that climbs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("../../etc/rows.jsonl")
        info.size = len(chats())
        archive.addfile(info, io.BytesIO(chats()))
    return out.getvalue()


def pickled() -> bytes:
    """A pickle that would run code."""
    return pickle.dumps(chat(), protocol=4)


def gzip_bomb(unpacked_mib: int = 256) -> bytes:
    """Rows of spaces that pack a thousand times."""
    return gzip.compress((b'{"text": "' + b" " * (1 << 20) + b'"}\n') * unpacked_mib, mtime=0)


def zstd_bomb(unpacked_mib: int = 1024) -> bytes:
    """The same, packed ten thousand times."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    piece = b'{"text": "' + b"a" * (1 << 20) + b'"}\n'
    return b"".join(packer.compress(piece) for _ in range(unpacked_mib)) + packer.flush()
