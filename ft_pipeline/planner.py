"""What a run would do before it does it: what is refused, what is reused, how many steps, how much memory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import FtError
from ft_pipeline.finetune import artifact as finetune
from ft_pipeline.recipe import Recipe, identity
from ft_pipeline.resources import House
from ft_pipeline.store.manifest import Manifest

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One asset of the road."""

    asset: str
    state: str
    """`reuse`, `compute` or `unknown` (an ancestor has to be made first)."""
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A dry run."""

    steps: tuple[Step, ...]
    optimizer_steps: int | None
    """None until the shards exist."""
    trained_parameters: int | None
    memory_gib: float | None
    """Weights, gradients and Adam states of one process, without activations; None until the base model is in the store."""


SECTIONS = {
    "raw_dataset": "dataset",
    "curated_dataset": "curate",
    "packed_shards": "encode",
    "checkpoints": "finetune",
    "eval_report": "gate",
}
"""Asset -> the section of the recipe that it hashes."""
ROAD = (
    "raw_dataset",
    "pinned_base",
    "curated_dataset",
    "packed_shards",
    "checkpoints",
    "adapter",
    "eval_report",
    "registered_model",
    "deployment",
)


def refuse_impossible(found: Recipe) -> None:
    """Raises what would fail later, before anything is computed."""
    finetune.refuse_unsupported(found)


def plan(house: House, found: Recipe) -> Plan:
    """The plan of a recipe against what the store and catalog hold now. Raises RecipeError when the recipe cannot run."""
    refuse_impossible(found)
    heads = {
        asset: house.store.manifest(ref.kind, ref.fingerprint) for asset, ref in house.catalog.heads(found.key).items()
    }
    shape = _shape(house, heads.get("pinned_base"))
    trained = (
        lora_parameters(shape, found.finetune.lora.rank)
        if shape and found.finetune.lora
        else shape and shape["parameters"]
    )
    return Plan(
        steps=tuple(_steps(found, heads)),
        optimizer_steps=_optimizer_steps(found, heads.get("packed_shards")),
        trained_parameters=trained or None,
        memory_gib=_memory(found, shape, trained) if shape and trained else None,
    )


def _steps(found: Recipe, heads: dict[str, Manifest | None]) -> list[Step]:
    steps: list[Step] = []
    changed = None
    for asset in ROAD:
        head = heads.get(asset)
        if changed:
            steps.append(Step(asset=asset, state="compute", why=f"{changed} changes"))
        elif head is None:
            steps.append(Step(asset=asset, state="compute", why="not made yet"))
            changed = asset if asset != "pinned_base" else changed
        elif difference := _difference(found, asset, head):
            steps.append(Step(asset=asset, state="compute", why=difference))
            changed = asset
        else:
            steps.append(Step(asset=asset, state="reuse", why=head.digest[:12]))
    return steps


def _difference(found: Recipe, asset: str, head: Manifest) -> str | None:
    """Which field of the asset's section is not what the stored artifact was made with."""
    section = SECTIONS.get(asset)
    if section is None or asset == "raw_dataset":
        return None
    now = identity(getattr(found, section))
    changed = [name for name, value in now.items() if name in head.config and head.config[name] != value]
    return f"{section}.{changed[0]} {head.config[changed[0]]!r} -> {now[changed[0]]!r}" if changed else None


def _optimizer_steps(found: Recipe, shards: Manifest | None) -> int | None:
    if shards is None or "train_windows" not in shards.counts:
        return None
    micros = shards.counts["train_windows"] // found.finetune.windows_per_micro
    return micros * found.finetune.epochs // (found.finetune.windows_per_step // found.finetune.windows_per_micro)


def _shape(house: House, base: Manifest | None) -> dict[str, int] | None:
    """Layer sizes of a Llama-like base model, from its config.json; None when it is not in the store or has another form."""
    if base is None:
        return None
    try:
        config = json.loads(Path(house.store.fetch(base.ref).file("config.json")).read_text(encoding="utf-8"))
        return shape_of(config)
    except (FtError, KeyError):
        return None


def shape_of(config: dict[str, Any]) -> dict[str, int]:
    """hidden, layers, kv, inner, vocabulary and the parameter count of a Llama-like config.json. Raises KeyError on another form."""
    hidden, layers, inner, vocabulary = (
        config[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    )
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = head * config["num_attention_heads"]
    kv = head * config.get("num_key_value_heads", config["num_attention_heads"])
    linear = layers * (2 * hidden * queries + 2 * hidden * kv + 3 * hidden * inner)
    heads = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    norms = hidden * (2 * layers + 1)
    return {
        "hidden": hidden,
        "layers": layers,
        "queries": queries,
        "kv": kv,
        "inner": inner,
        "vocabulary": vocabulary,
        "parameters": linear + heads + norms,
    }


def lora_parameters(shape: dict[str, int], rank: int) -> int:
    """Trained parameters of LoRA on all seven linear projections (Llama-3-8B, rank 16: 41,943,040; Llama-2-7B, rank 8: 19,988,480)."""
    hidden, queries, kv, inner = shape["hidden"], shape["queries"], shape["kv"], shape["inner"]
    attention = 2 * (hidden + queries) + 2 * (hidden + kv)
    return shape["layers"] * rank * (attention + 3 * (hidden + inner))


def _memory(found: Recipe, shape: dict[str, int], trained: int) -> float:
    """GiB of weights, gradients and Adam states: 16 B per trained parameter, 2 or 4 B per frozen one (ZeRO paper, section 3.1)."""
    frozen_bytes = 2 if found.finetune.dtype == "bfloat16" else 4
    frozen = shape["parameters"] if found.finetune.lora else 0
    if found.finetune.lora and found.finetune.lora.quantize == "nf4":
        frozen_bytes = 1
    return math.ceil((frozen * frozen_bytes + trained * 16) / GIB * 100) / 100
