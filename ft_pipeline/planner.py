"""What a run would do before it does it: what is refused, what is reused, how many steps, how much memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.acquire.places import listing
from ft_pipeline.curate import references
from ft_pipeline.curate.consolidate import curation_of
from ft_pipeline.encode.artifact import base_digests, shards_spec
from ft_pipeline.errors import FtError, UserError
from ft_pipeline.finetune import artifact as finetune
from ft_pipeline.gate.evaluation import report_config
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.recipe import Recipe
from ft_pipeline.resources import House
from ft_pipeline.settings import Settings
from ft_pipeline.store.manifest import Manifest, Ref, Spec
from ft_pipeline.store.paths import resolve

GIB = 1 << 30
ROAD = (
    "raw_dataset", "pinned_base", "curated_dataset", "packed_shards", "checkpoints", "adapter", "eval_report", "registered_model", "deployment",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One asset of the road."""

    asset: str
    state: str
    """`reuse` or `compute`."""
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


def refuse_impossible(found: Recipe, where: Settings) -> None:
    """Raises what would fail later, before anything is computed: RecipeError, NotFoundError, DataError."""
    finetune.refuse_unsupported(found)
    read_policy(found.gate.policy)
    for field, uri in _places(found):
        if "://" in resolve(uri, where.home):
            continue
        try:
            listing(uri, where, wanted=lambda _name: True, what="file")
        except UserError as error:
            raise type(error)(f"{found.key} {field}: {error.what}", why=error.why, cure=error.cure) from None


def _places(found: Recipe) -> Iterator[tuple[str, str]]:
    """Field -> URI of everything that a run reads from outside the store. A pinned dataset may be in the store alone."""
    yield "base_model", found.base_model.uri
    if found.dataset.revision is None:
        yield "dataset", found.dataset.uri
    for source in found.mix:
        if source.revision is None:
            yield f"mix {source.name}", source.uri
    for benchmark in found.curate.contamination.benchmarks:
        yield f"curate.contamination.benchmarks {benchmark.name}", benchmark.uri
    if found.curate.toxicity.words:
        yield "curate.toxicity.words", found.curate.toxicity.words
    yield from ((f"gate.benchmarks {suite.name}", suite.uri) for suite in found.gate.benchmarks)
    if found.gate.safety:
        yield "gate.safety", found.gate.safety.uri


def plan(house: House, found: Recipe) -> Plan:
    """The plan of a recipe against what the store holds now. Raises RecipeError when the recipe cannot run.

    Exact: each artifact's spec is computed from its parents' digests, as the run does it, until one is not in the store.
    """
    refuse_impossible(found, house.settings)
    made = _made(house, found)
    shape = _shape(house, made["pinned_base"])
    trained = trained_parameters(found, shape) if shape else None
    return Plan(
        steps=tuple(_step(asset, made[asset]) for asset in made),
        optimizer_steps=_optimizer_steps(found, made["packed_shards"]),
        trained_parameters=trained,
        memory_gib=_memory(found, shape, trained) if shape and trained else None,
    )


def _step(asset: str, there: Manifest | None) -> Step:
    why = there.digest[:12] if there else "not in the store"
    return Step(asset=asset, state="reuse" if there else "compute", why=why)


def _made(house: House, found: Recipe) -> dict[str, Manifest | None]:
    """Asset -> its manifest when the run would find it, in the order of the road."""
    heads = {a: house.store.manifest(ref.kind, ref.fingerprint) for a, ref in house.catalog.heads(found.key).items()}
    made: dict[str, Manifest | None] = dict.fromkeys(ROAD)
    raw, base = heads.get("raw_dataset"), heads.get("pinned_base")
    made.update(raw_dataset=raw, pinned_base=base)
    if raw and base:
        made.update(_walk(house, found, raw=raw.ref, base=base.ref))
    report, adapter = heads.get("eval_report"), made["adapter"]
    if report and adapter and report.parents["adapter"] == adapter.ref and _same_gate(found, report):
        made.update({asset: heads.get(asset) for asset in ("eval_report", "registered_model", "deployment")})
    return made


def _same_gate(found: Recipe, report: Manifest) -> bool:
    config = report_config(found.gate, read_policy(found.gate.policy))
    return config == dict(report.config)


def _walk(house: House, found: Recipe, *, raw: Ref, base: Ref) -> Iterator[tuple[str, Manifest]]:
    """The artifacts from the curated rows to the adapter that are there, up to the first that is not."""
    opened = references.known(found.curate, settings=house.settings, store=house.store)
    if opened is None:
        return
    specs: list[tuple[str, Callable[[Ref], Spec]]] = [
        ("curated_dataset", lambda raw: curation_of(found, raw=raw, base=base, store=house.store, **opened).spec()),
        ("packed_shards", lambda curated: shards_spec(found.encode, curated=curated, base_digests=base_digests(house.store.fetch(base)))),
        ("checkpoints", lambda shards: finetune.checkpoints_spec(found.finetune, shards=shards, base=base)),
    ]  # fmt: skip
    parent, refs = raw, {}
    for asset, spec_of in specs:
        made = _there(house, spec_of(parent))
        if made is None:
            return
        yield asset, made
        parent = refs[asset] = made.ref
    last = finetune.adapter_spec(
        found.base_model.uri, checkpoints=refs["checkpoints"], shards=refs["packed_shards"], base=base
    )
    if adapter := _there(house, last):
        yield "adapter", adapter


def _there(house: House, spec: Spec) -> Manifest | None:
    return house.store.manifest(spec.kind, spec.fingerprint)


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


def trained_parameters(found: Recipe, shape: dict[str, int]) -> int:
    """How many parameters the recipe trains: the adapter's, or all."""
    return lora_parameters(shape, found.finetune.lora.rank) if found.finetune.lora else shape["parameters"]


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
