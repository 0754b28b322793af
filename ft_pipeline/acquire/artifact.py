"""What acquire hands on: `raw_dataset` and `base_model` artifacts, the names of their files, and how to read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.recipe import DATASET
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Ref

RAW_KIND = "raw_dataset"
BASE_KIND = "base_model"

FILES = "files/"
SOURCE = "source.json"
"""raw_dataset: {uri, revision, licence, files: [{name, sha256, bytes}]}."""
SOURCES = "sources.json"
"""raw_dataset of a mix, its only file: {sources: [{name, digest, fingerprint}]} in the recipe's order; the rows are in its parents."""
DIGESTS = "digests.json"
"""base_model: {weights, tokenizer, chat_template, config, docs}: sha256 by file class."""
TOKENIZER = "tokenizer.json"

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
PACKINGS = ("", ".gz", ".zst")


def holds_rows(name: str) -> bool:
    """True for a file name that curate can read rows from: JSON lines or a JSON array (also .gz, .zst), Parquet."""
    lower = name.lower()
    return lower.endswith(tuple(s + p for s in ROW_SUFFIXES for p in PACKINGS if s != ".parquet" or not p))


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRows:
    """The row files of one source of a dataset."""

    name: str
    """`dataset`, or the name of a source of the mix."""
    artifact: Artifact
    files: Mapping[str, Path]
    """Name as the source gave it -> verified local path, in order of name."""


def sources_of(store: Store, raw: Ref) -> list[SourceRows]:
    """The sources of a raw dataset in the recipe's order; the dataset itself comes first, and is the only one without a mix.

    Raises NotFoundError, IntegrityError.
    """
    manifest = store.recorded(raw)
    if SOURCES not in manifest.files:
        return [_source_rows(DATASET, store.fetch(raw))]
    listed = json.loads(store.fetch_file(raw, SOURCES).read_bytes())["sources"]
    return [_source_rows(s["name"], store.fetch(manifest.parents[s["name"]])) for s in listed]


def _source_rows(name: str, artifact: Artifact) -> SourceRows:
    return SourceRows(name=name, artifact=artifact, files=raw_files(artifact))


def raw_files(raw: Artifact) -> dict[str, Path]:
    """Name as the source gave it -> verified local path, in order of name."""
    names = sorted(n for n in raw.manifest.files if n.startswith(FILES))
    return {n.removeprefix(FILES): raw.file(n) for n in names}


def source_of(raw: Artifact) -> dict[str, Any]:
    """The content of `source.json`."""
    return json.loads(raw.file(SOURCE).read_bytes())


def digests_of(base: Artifact) -> dict[str, str]:
    """sha256 by file class: what a base bump really changed (gate.md, "Base SHA change")."""
    return json.loads(base.file(DIGESTS).read_bytes())


def control_tokens(store: Store, base: Ref) -> tuple[str, ...]:
    """The special added tokens of a base model's tokenizer, sorted: text that would be read as a turn mark.

    Reads `tokenizer.json` alone, verified against the manifest, so that no weights travel. Added tokens that are not
    special (runs of spaces in GPT-NeoX tokenizers) are ordinary text. Raises NotFoundError, IntegrityError.
    """
    content = store.fetch_file(base, TOKENIZER).read_bytes()
    added = json.loads(content).get("added_tokens", [])
    return tuple(sorted({t["content"] for t in added if t.get("special") and t.get("content")}))
