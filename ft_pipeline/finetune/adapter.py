"""Packages a complete run as an adapter that PEFT and vLLM load: tensors, config, tokenizer and template of the base. No torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ft_pipeline.errors import IntegrityError
from ft_pipeline.finetune.artifact import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COMPLETION,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    RESUME,
    Completion,
    adapter_spec,
    base_name,
    read_completion,
    shortfall,
)  # fmt: skip
from ft_pipeline.store.artifacts import Artifact, Store

TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "special_tokens_map.json", "spiece.model",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
BITS = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F64": "<u8"}
"""Of a safetensors dtype: the unsigned integer of its width."""
TRAINED_FILES = (ADAPTER_WEIGHTS, MODEL_WEIGHTS, MODEL_CONFIG, "generation_config.json", COMPLETION, RESUME)


def package(store: Store, *, checkpoints: Artifact, base: Artifact, base_uri: str) -> Artifact:
    """The `adapter` of a complete run, found when it was packaged before.

    Raises IntegrityError for a run without proof of completion and for an adapter that changes nothing.
    """
    shards = checkpoints.manifest.parents["shards"]
    start = checkpoints.manifest.parents.get("start")
    spec = adapter_spec(base_uri, checkpoints=checkpoints.ref, shards=shards, base=base.ref, start=start)
    if found := store.find(spec):
        return found
    proof = read_completion(checkpoints)
    refuse_unfinished(checkpoints, proof)
    refuse_empty(checkpoints)
    with store.publish(spec) as draft:
        for source, names in ((base, TOKENIZER_FILES), (checkpoints, TRAINED_FILES)):
            _copy(source, names, draft.folder)
        if ADAPTER_CONFIG in checkpoints.manifest.files:
            config = adapter_config(checkpoints, base_name=base_name(base_uri), revision=base.ref.digest)
            (draft.folder / ADAPTER_CONFIG).write_text(json.dumps(config, sort_keys=True, indent=1))
        draft.counts.update(steps=proof.steps, rows=proof.rows)
    assert draft.artifact is not None
    return draft.artifact


def adapter_config(checkpoints: Artifact, *, base_name: str, revision: str) -> dict[str, Any]:
    """PEFT's config with the base model by name and digest: PEFT itself writes `"revision": null`."""
    config = json.loads(checkpoints.file(ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return {**config, "base_model_name_or_path": base_name, "revision": revision}


def refuse_unfinished(checkpoints: Artifact, proof: Completion) -> None:
    """Raises IntegrityError for a run that did not reach its end."""
    if lacks := shortfall(proof):
        raise IntegrityError(
            f"{checkpoints.ref.path} {lacks}",
            why="A half-trained adapter looks like a whole one; it is never packaged or served.",
            cure="run the recipe again: it resumes from the newest checkpoint",
        )


def refuse_empty(checkpoints: Artifact) -> None:
    """Raises IntegrityError when every lora_B is zero: B A changes nothing, and serving would not notice (DeepSpeed#3620)."""
    if ADAPTER_WEIGHTS not in checkpoints.manifest.files:
        return
    if not _has_lora_b(checkpoints.file(ADAPTER_WEIGHTS)):
        raise IntegrityError(
            f"{checkpoints.ref.path} holds an adapter that changes nothing: every lora_B is zero",
            why="It would be served and gated as if it had been trained.",
            cure="look at the loss curve: the optimizer never stepped, or the learning rate is 0",
        )


def _has_lora_b(path: Path) -> bool:
    """True when one number of one lora_B is not zero, told by its bits: numpy knows no bfloat16, and torch is not loaded here."""
    import numpy as np

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        for name, told in json.loads(file.read(size)).items():
            if ".lora_B." not in name:
                continue
            start, end = told["data_offsets"]
            file.seek(8 + size + start)
            kind = BITS[told["dtype"]]
            # all bits but the sign: -0.0 is zero
            if (np.frombuffer(file.read(end - start), kind) << 1).any():
                return True
    return False


def _copy(source: Artifact, names: tuple[str, ...], folder: Path) -> None:
    for name in names:
        if name in source.manifest.files:
            shutil.copyfile(source.file(name), folder / name)
