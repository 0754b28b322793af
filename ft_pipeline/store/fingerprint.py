"""Hashes: of bytes, of JSON values, of logical rows, of code. sha256 everywhere, 64 lower-case hex digits."""

from __future__ import annotations

import hashlib
import io
import json
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """One byte string for equal values: sorted keys, no spaces, ASCII. Raises on NaN and on what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def sha256_bytes(data: bytes) -> str:
    """Digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Digest of a JSON value, independent of key order."""
    return sha256_bytes(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Digest of a local file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_rows(rows: Iterable[Any]) -> str:
    """Logical digest of rows in order: for files whose bytes change with the library version (Parquet)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical_json(row))
        digest.update(b"\n")
    return digest.hexdigest()


def code_digest(*sources: Path) -> str:
    """Digest of what Python files do: comments, docstrings, blank lines and layout do not count.

    A folder stands for its .py files. Part of an artifact's identity, so a changed transformation is never answered
    from the store (the stale-cache defect of open-instruct#1815).
    """
    files = sorted(f for s in sources for f in (s.rglob("*.py") if s.is_dir() else [s]))
    return sha256_json([[f.name, _meaning(f)] for f in files])


def _meaning(path: Path) -> list[str]:
    """The tokens of a file without comments, docstrings (strings that are whole statements) and layout."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
    written = {tokenize.NEWLINE: ";", tokenize.INDENT: "{", tokenize.DEDENT: "}"}
    read = tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
    tokens = [t for t in read if t.type not in layout]
    words: list[str] = []
    starts_statement, was_docstring = True, False
    for token, follower in zip(tokens, [*tokens[1:], None], strict=True):
        ends_statement = follower is None or follower.type == tokenize.NEWLINE
        is_docstring = token.type == tokenize.STRING and starts_statement and ends_statement
        if not is_docstring and not was_docstring:
            words.append(written.get(token.type, token.string))
        starts_statement, was_docstring = token.type in written, is_docstring
    return words
