"""What a base model and an adapter look like from outside: shapes from safetensors headers, vocabulary, template. No weights are read."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.acquire.artifact import DIGESTS, TOKENIZER
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.fingerprint import sha256_json
from ft_pipeline.store.manifest import Manifest, Ref

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """A base model without its weights."""

    digests: Mapping[str, str]
    """By file class: weights, tokenizer, chat_template, config, docs."""
    shapes: Shapes
    vocab_size: int | None
    """Rows of the embedding, as the config says."""
    vocabulary_sha: str
    """Of the tokenizer's model (tokens, ids, merges): what an id means."""
    added_tokens: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What an adapter asks of a base: for a LoRA the layers that it changes, for a full fine-tune every tensor."""

    shapes: Shapes
    """Name of the base's tensor -> its shape; of a LoRA layer (out, in)."""


def structure_of(store: Store, base: Ref) -> Structure:
    """The structure of a `base_model` artifact. Raises NotFoundError, IntegrityError."""
    manifest = store.recorded(base)
    tokenizer = _json(store, base, TOKENIZER)
    config = _json(store, base, CONFIG)
    return Structure(
        digests=_json(store, base, DIGESTS),
        shapes=_shapes(store, manifest),
        vocab_size=config.get("vocab_size", config.get("text_config", {}).get("vocab_size")),
        vocabulary_sha=sha256_json(tokenizer.get("model")),
        added_tokens={t["content"]: t["id"] for t in tokenizer.get("added_tokens", [])},
    )


def needs_of(store: Store, adapter: Ref) -> Needs:
    """What an `adapter` artifact needs. Raises NotFoundError, IntegrityError."""
    manifest = store.recorded(adapter)
    shapes = _shapes(store, manifest)
    return Needs(shapes=dict(_layers(shapes)) if ADAPTER_CONFIG in manifest.files else shapes)


def _layers(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The base's tensors behind PEFT's names: `base_model.model.X.lora_A.weight` is on `X.weight`."""
    for name, shape in shapes.items():
        plain = name.removeprefix("base_model.model.")
        if plain.endswith(".lora_A.weight"):
            out = shapes[name.replace(".lora_A.", ".lora_B.")][0]
            yield plain.replace(".lora_A.weight", ".weight"), (out, shape[1])
        elif ".lora_" not in plain:
            yield plain, shape


def _shapes(store: Store, manifest: Manifest) -> dict[str, tuple[int, ...]]:
    files = [name for name in manifest.files if name.endswith(".safetensors")]
    headers = [_header(store, manifest, name) for name in files]
    return {name: tuple(t["shape"]) for header in headers for name, t in header.items() if name != "__metadata__"}


def _header(store: Store, manifest: Manifest, name: str) -> dict[str, Any]:
    """The JSON at the head of a safetensors file: 8 bytes of length, little-endian, then the text. Loading verifies the rest."""
    with store.bucket.filesystem.open(store.bucket.path(store.location(manifest, name)), "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


def _json(store: Store, ref: Ref, name: str) -> dict[str, Any]:
    return json.loads(store.fetch_file(ref, name).read_bytes())
