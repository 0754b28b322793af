"""Which frozen model dpo and kto compare with: the base, another base model, or an adapter, which training then starts from.

The usual road is SFT, then DPO with the SFT model as the reference (arXiv 2305.18290, section 4): named as an adapter, the log-probabilities
are those of base + adapter, training goes on from its weights, and every margin is 0 before the first step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ft_pipeline.errors import RecipeError
from ft_pipeline.recipe import Finetune, Lora, Recipe, is_name
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.catalog import Catalog

BASE, ADAPTER_KIND = "base", "adapter"
ADAPTER_CONFIG = "adapter_config.json"
PIN = "adapter://{line}"
"""URI under which the catalog keeps which adapter a model line stood for in the newest run."""
ACCEPTED = "base, the digest of a base_model or adapter artifact, or a model line tenant/name"


def newest(catalog: Catalog) -> Callable[[str], str]:
    """Model line -> digest of its newest adapter; the call raises NotFoundError where there is none."""
    return lambda line: catalog.head(line, ADAPTER_KIND).digest


def pinned(catalog: Catalog, key: str) -> Callable[[str], str]:
    """The same as the newest `reference_logprobs` of a recipe saw it: training must not read another one than was measured."""
    return lambda line: catalog.pinned(key, PIN.format(line=line)) or newest(catalog)(line)


def pin(catalog: Catalog, key: str) -> Callable[[str], str]:
    """The newest, written down for `pinned`."""

    def digest_of(line: str) -> str:
        digest = newest(catalog)(line)
        catalog.pin(key, PIN.format(line=line), digest)
        return digest

    return digest_of


def needs_reference(section: Finetune) -> bool:
    """True when the loss compares with a frozen model."""
    return section.method in ("dpo", "kto")


def resolved(recipe: Recipe, digest_of: Callable[[str], str]) -> Recipe:
    """The recipe with a digest where its reference names a model line. digest_of: line -> digest of its adapter.

    Raises RecipeError for the recipe's own line: it would start from itself, and end elsewhere each time.
    """
    section = recipe.finetune
    line = None if section.preference is None else reference_line(section.preference.reference)
    if section.preference is None or line is None:
        return recipe
    if line == recipe.key:
        raise RecipeError(
            f"finetune.preference.reference {line} is the recipe's own model line",
            why="Each run would start from the one before, so that no run could be made again.",
            cure="a second recipe of another name, or the digest of the adapter",
        )
    preference = replace(section.preference, reference=digest_of(line))
    return replace(recipe, finetune=replace(section, preference=preference))


def reference_line(named: str) -> str | None:
    """The model line that a reference names; None for `base` and for a digest."""
    tenant, slash, name = named.partition("/")
    return named if slash and is_name(tenant) and is_name(name) else None


def reference_model(section: Finetune, *, base: Artifact, find: Callable[[str], Artifact]) -> Artifact:
    """The artifact that a resolved section names: a base_model, or an adapter on this base and of the recipe's own shape.

    find: the artifact whose digest begins so. Raises RecipeError for any other.
    """
    named = BASE if section.preference is None else section.preference.reference
    if named == BASE:
        return base
    found = find(named)
    if found.manifest.kind == ADAPTER_KIND:
        _refuse_other_base(found, base)
        _refuse_other_shape(found, section.lora)
        return found
    if found.manifest.kind != base.manifest.kind:
        raise RecipeError(
            f"finetune.preference.reference {named[:16]} is of kind {found.manifest.kind}, not a base_model or an adapter",
            why="Only these can be asked for log-probabilities.",
            cure=ACCEPTED,
        )
    refuse_other_tokenizer(found, base, "preference.reference")
    return found


def starting_adapter(section: Finetune, *, base: Artifact, find: Callable[[str], Artifact]) -> Artifact | None:
    """The adapter whose weights training starts from: that of the reference; None when it starts from the base."""
    if not needs_reference(section):
        return None
    found = reference_model(section, base=base, find=find)
    return found if found.manifest.kind == ADAPTER_KIND else None


def refuse_other_tokenizer(found: Artifact, base: Artifact, field: str) -> None:
    """Raises RecipeError when a frozen model of `finetune.<field>` reads other tokens than the base."""
    from ft_pipeline.encode.artifact import base_digests

    if base_digests(found)["tokenizer"] != base_digests(base)["tokenizer"]:
        raise RecipeError(
            f"finetune.{field} {found.ref.digest[:16]} has another tokenizer than the base model",
            why="Its log-probabilities would be of other tokens.",
            cure="a model of the same family",
        )


def refuse_tensors(adapter: Artifact, tensors: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raises RecipeError when the tensors of the adapter are not those that are trained, by name and shape."""
    odd = sorted({*tensors} ^ {*there})
    odd += sorted(name for name in {*tensors} & {*there} if tensors[name].shape != there[name].shape)
    if odd:
        raise RecipeError(
            f"adapter {adapter.ref.digest[:12]} and this recipe differ in {len(odd)} tensors, {odd[0]} among them",
            why="Training goes on from the adapter's own weights, so both must adapt the same layers.",
            cure="finetune.lora.targets as the adapter's recipe has them",
        )


def _refuse_other_base(adapter: Artifact, base: Artifact) -> None:
    made_on = adapter.manifest.parents["base"]
    if made_on != base.ref:
        raise RecipeError(
            f"adapter {adapter.ref.digest[:12]} was trained on base model {made_on.digest[:12]}, this recipe's is {base.ref.digest[:12]}",
            why="Its weights are differences to the base that it was trained on.",
            cure="the same base_model with the same revision, or an adapter of this one",
        )


def _refuse_other_shape(adapter: Artifact, lora: Lora | None) -> None:
    if ADAPTER_CONFIG not in adapter.manifest.files:
        if lora is not None:
            raise RecipeError(
                f"adapter {adapter.ref.digest[:12]} is a full model, and finetune.lora is given",
                why="The result would be an adapter on a model that nobody serves.",
                cure="lora: null, or export it, pin it as a base_model, and reference: base",
            )
        return
    theirs = shape_of(json.loads(adapter.file(ADAPTER_CONFIG).read_text(encoding="utf-8")))
    if lora is None:
        raise RecipeError(
            f"adapter {adapter.ref.digest[:12]} is LoRA of rank {theirs['rank']}, and finetune.lora is null",
            why="Training goes on from the adapter's own weights, and the other weights are the base's.",
            cure=f"lora: {{rank: {theirs['rank']}, alpha: {theirs['alpha']}}}, or merge it and pin the result as a base_model",
        )
    ours: dict[str, Any] = {name: getattr(lora, name) for name in ("rank", "alpha", "rslora", "dora")}
    ours["targets"] = theirs["targets"] if lora.targets == "all-linear" else sorted(lora.targets)
    if differs := [f"{name} {ours[name]} (there {theirs[name]})" for name in theirs if ours[name] != theirs[name]]:
        raise RecipeError(
            f"finetune.lora differs from adapter {adapter.ref.digest[:12]}, which it starts from: {', '.join(differs)}",
            why="Training goes on from the adapter's own weights: another shape cannot hold them, another scale changes what they do.",
            cure=f"lora: {json.dumps(theirs)}",
        )


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of PEFT's config decides which tensors there are and what they do, by the names of a recipe."""
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "rslora": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
        "targets": sorted(config["target_modules"]),
    }
