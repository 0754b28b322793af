"""A model snapshot: which files belong to it, to which class each belongs, and whether the weights are whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path

from ft_pipeline.acquire.artifact import TOKENIZER
from ft_pipeline.errors import DataError
from ft_pipeline.store.fingerprint import sha256_json

CLASSES = {
    "weights": ("*.safetensors", "*.safetensors.index.json"),
    "tokenizer": (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    ),
    "chat_template": ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*"),
    "config": ("config.json", "generation_config.json"),
    "docs": ("README*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.md"),
}  # fmt: skip
"""File class -> names. What is in no class (code, other formats, original checkpoints) is left at the source."""

EXCLUDED = ("consolidated*.safetensors", "adapter_model*.safetensors", "*/*.safetensors")
"""Mistral's second copy of the weights, adapters, weights in sub-folders (`original/`, `onnx/`)."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library itself."""


def class_of(name: str) -> str | None:
    """The class of a file, None when it is no part of a snapshot."""
    if any(fnmatch(name, pattern) for pattern in EXCLUDED):
        return None
    return next((c for c, patterns in CLASSES.items() if any(fnmatch(name, p) for p in patterns)), None)


def wanted(name: str) -> bool:
    """True for a file that is copied, and for a pickle, which has to be seen to be refused."""
    return class_of(name) is not None or is_pickle(name)


def is_pickle(name: str) -> bool:
    """True for weights that run code when they are loaded."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PICKLES)


def check_names(names: Collection[str], uri: str) -> None:
    """Raises DataError when config, safetensors weights or tokenizer.json are not among the files."""
    weights = [n for n in names if class_of(n) == "weights"]
    if not weights and any(is_pickle(n) for n in names):
        raise DataError(
            f"{uri} has its weights as pickle ({next(n for n in sorted(names) if is_pickle(n))})",
            why="Loading a pickle runs whatever code its author put in; safetensors holds numbers only.",
            cure="convert it once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder) on a machine you can lose",
        )
    missing = [n for n in ("config.json", TOKENIZER) if n not in names]
    if not any(n.endswith(".safetensors") for n in weights):
        missing.append("*.safetensors")
    if missing:
        raise DataError(
            f"{uri} is not a base model: {', '.join(missing)} missing",
            why="A base model is a Hugging Face snapshot: config.json, safetensors weights, tokenizer.json.",
            cure="point at the folder that save_pretrained wrote, tokenizer included",
        )


def check_weights(folder: Path) -> None:
    """Raises DataError for a weight file that is cut short and for a shard that the index names and nobody has."""
    for path in sorted(folder.glob("*.safetensors")):
        _check_whole(path)
    index = folder / INDEX
    if index.is_file():
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if absent := [s for s in shards if not (folder / s).is_file()]:
            raise DataError(f"{INDEX} names {absent[0]}, which is not there", cure="fetch the snapshot again, whole")


def class_digests(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """sha256 by file class over sorted (name, sha256); a template inside tokenizer_config.json counts as chat_template.

    A tokenizer_config.json is hashed as its JSON value without the template, so that each class says one thing only.
    """
    files: dict[str, list[list[str]]] = {c: [] for c in CLASSES}
    for name, digest in sorted(digests.items()):
        if name == TOKENIZER_CONFIG:
            settings = json.loads((folder / name).read_bytes())
            template = settings.pop("chat_template", None)
            if template is not None:
                files["chat_template"].append([name, sha256_json(template)])
            digest = sha256_json(settings)
        if (kind := class_of(name)) is not None:
            files[kind].append([name, digest])
    return {kind: sha256_json(entries) for kind, entries in files.items()}


def _check_whole(path: Path) -> None:
    """The header's last offset plus the header is the file's size (huggingface.co/docs/safetensors, format)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        try:
            header = json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise DataError(f"{path.name} is not a safetensors file ({size:,} bytes)", cure="fetch it again")
    end = max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    if 8 + length + end != size:
        raise DataError(
            f"{path.name} has {size:,} bytes, its header promises {8 + length + end:,}",
            why="It was cut short.",
            cure="fetch it again",
        )
