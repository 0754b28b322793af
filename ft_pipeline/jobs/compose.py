"""From a request to a recipe: pure, and whole. What the request leaves open comes from presets and is written down, so nothing is guessed later."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import RecipeError, did_you_mean
from ft_pipeline.jobs import presets
from ft_pipeline.jobs.ask import Ask, Rows
from ft_pipeline.jobs.files_in import with_places
from ft_pipeline.jobs.gates import gate_of
from ft_pipeline.jobs.offer import Base, Offer
from ft_pipeline.jobs.permit import refuse_forbidden
from ft_pipeline.recipe import Recipe, parse

ORIGIN = "the request"
WHOLE = frozenset({"base_model", "dataset", "finetune", "gate"})
"""A document with all of these is a whole recipe: nothing that it leaves out is filled from the presets."""
PLATFORM_ONLY = {
    "schedule": "A job trains once; ask for the next one when it is wanted.",
    "on_base_change": "The platform judges adapters again when a base moves; who wants a retraining asks for a job.",
}
SAID = {
    "n_epochs": ("epochs",),
    "learning_rate_multiplier": ("learning_rate",),
    "batch_size": ("windows_per_step",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "lora_target_modules": ("lora",),
    "beta": ("preference",),
}
"""Knob of a request -> the field of `finetune` that says the same."""
Find = Callable[[str], Rows]
"""A file of the tenant by its id. Raises what the API answers when there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Composed:
    """What a request comes to."""

    recipe: Recipe
    base: Base
    hyperparameters: Mapping[str, Any]
    """`n_epochs`, `batch_size`, `learning_rate_multiplier` as numbers, and `beta` of dpo: what "auto" became."""


def compose(ask: Ask, offer: Offer, *, find: Find) -> Composed:
    """The recipe of a request. Raises RecipeError for what is no recipe or what a tenant may not ask for, and what `find` raises."""
    base = base_of(ask.model, offer)
    own: dict[str, Rows] = {ask.training.uri: ask.training}

    def placed(file_id: str) -> str:
        rows = find(file_id)
        own[rows.uri] = rows
        return rows.uri

    sections = with_places(_own_sections(ask, base), placed)
    document = dict(sections) if sections.keys() >= WHOLE else laid_over(_composed(ask, base, offer), sections)
    document |= {
        "tenant": ask.tenant,
        "name": _name(ask, document),
        "base_model": {"uri": base.uri, "revision": _revision(document, base)},
        "dataset": {**document.get("dataset", {}), "uri": ask.training.uri},
    }
    found = parse(document, origin=ORIGIN)
    for rows in (ask.validation, ask.examination.task_eval_file if ask.examination else None):
        if rows:
            own[rows.uri] = rows
    refuse_forbidden(found, offer, own=frozenset(own))
    return Composed(recipe=found, base=base, hyperparameters=_told(found, ask, base))


def base_of(name: str, offer: Offer) -> Base:
    """The base model of a name in a request; its URI is a name too. Raises RecipeError with the nearest name."""
    if name in offer.bases:
        return offer.bases[name]
    if found := next((base for base in offer.bases.values() if base.uri == name), None):
        return found
    if re.search(r"@\d+$|:[a-z]+$", name):
        raise RecipeError(
            f"model {name!r} is a fine-tuned version, not a base model",
            why="An adapter is trained on a base model; one on top of another would be served without it.",
            cure="name the base model; with dpo or kto `platform.recipe.finetune.preference.reference` starts from an adapter of your own",
        )
    raise RecipeError(
        f"model {name!r} is not offered: {did_you_mean(name, offer.bases)}",
        why="A tenant trains the base models that the platform lists, and reads no path of its machines.",
        cure="GET /v1/models?type=base lists them",
    )


def laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key; everything else, lists too, is replaced."""
    both = {k: laid_over(under[k], v) for k, v in over.items() if _both_mappings(under.get(k), v)}
    return {**under, **over, **both}


def _both_mappings(one: Any, other: Any) -> bool:
    return isinstance(one, Mapping) and isinstance(other, Mapping)


def _own_sections(ask: Ask, base: Base) -> dict[str, Any]:
    """What `platform.recipe` may say. Raises RecipeError."""
    said = dict(ask.sections)
    for name, why in PLATFORM_ONLY.items():
        if said.pop(name, None) is not None:
            raise RecipeError(f"platform.recipe.{name} is the platform's", why=why, cure="leave it out")
    if (tenant := said.get("tenant", ask.tenant)) != ask.tenant:
        raise RecipeError(f"platform.recipe.tenant is {tenant!r}, the key is of {ask.tenant}", cure="leave it out")
    for name in ("base_model", "dataset", "finetune", "gate", "encode", "curate"):
        if not isinstance(said.get(name, {}), Mapping):
            raise RecipeError(f"platform.recipe.{name} is {said[name]!r}, not a mapping")
    if (uri := said.get("base_model", {}).get("uri", base.uri)) != base.uri:
        raise RecipeError(f"platform.recipe.base_model.uri is {uri!r}, model {ask.model} is {base.uri}")
    if (uri := said.get("dataset", {}).get("uri", ask.training.id)) not in (ask.training.id, ask.training.uri):
        raise RecipeError(
            f"platform.recipe.dataset.uri is {uri!r}, the training file is {ask.training.id}",
            why="A job trains on the file that it names.",
            cure="leave it out; further files go into `mix`",
        )
    finetune = said.get("finetune", {})
    for knob, names in SAID.items():
        if getattr(ask.hyper, knob) is not None and (twice := [n for n in names if n in finetune]):
            raise RecipeError(
                f"{knob} and platform.recipe.finetune.{twice[0]} say the same", cure="say it once, or knob: auto"
            )
    return said


def _composed(ask: Ask, base: Base, offer: Offer) -> dict[str, Any]:
    """The whole document of a request without sections of its own."""
    shape, rows = presets.SHAPES[base.size], ask.training.count
    pairs = ask.method in ("dpo", "grpo")
    tested = ask.examination.task_eval_file if ask.examination else None
    return {
        "description": f"{ask.method} of {ask.model} on {ask.training.id}",
        "dataset": {"layout": _layout(ask)},
        "mix": [*_held("validation", ask.validation, ask), *_held("holdout", tested, ask)],
        "curate": {
            "splits": {
                "validation": 0.0 if ask.validation else presets.validation_share(rows),
                "holdout": 0.0 if tested else presets.holdout_share(ask.method, rows),
            },
            **({"near_duplicates": {"policy": "whole_example"}} if ask.method == "cpt" else {}),
        },
        "encode": {
            "window_tokens": shape.window_tokens // 2 if pairs and base.size != "tiny" else shape.window_tokens,
            "overlong": "reject" if pairs else "truncate",
            **({"loss": "all"} if ask.method == "cpt" else {}),
        },
        "finetune": _finetune(ask, base),
        "gate": gate_of(ask, base, offer),
    }


def _layout(ask: Ask) -> str:
    """A preference set and one of text are no chats; the method says which."""
    return {"dpo": "preference", "grpo": "rlvr", "cpt": "text"}.get(ask.method, "auto")


def _held(split: str, rows: Rows | None, ask: Ask) -> list[dict[str, Any]]:
    return [{"name": split, "uri": rows.uri, "split": split, "layout": _layout(ask)}] if rows else []


def _finetune(ask: Ask, base: Base) -> dict[str, Any]:
    hyper, shape, method = ask.hyper, presets.SHAPES[base.size], ask.method
    rows = ask.training
    auto = presets.windows_per_step(method, base.size, rows=rows.count, tokens=rows.tokens)
    per_step = hyper.batch_size or auto
    made: dict[str, Any] = {
        "method": {"lora": "sft", "qlora": "sft"}.get(method, method),
        "lora": _lora(ask, base),
        "learning_rate": presets.learning_rate(method, base.size, hyper.learning_rate_multiplier or 1.0),
        "epochs": hyper.n_epochs or presets.epochs(method, ask.training.count),
        "windows_per_step": per_step,
        "windows_per_micro": presets.per_micro(per_step, base.size),
        "dtype": shape.dtype,
        "seed": ask.seed,
    }
    if method == "dpo":
        made["preference"] = {"beta": hyper.beta or 0.1}
    if method == "grpo":
        rewards = [dict(reward) for reward in ask.rewards]
        made["reinforce"] = {"max_new_tokens": shape.answer_tokens, "rewards": rewards}
    return made


def _lora(ask: Ask, base: Base) -> dict[str, Any] | None:
    """None trains every weight."""
    hyper = ask.hyper
    if ask.method == "sft":
        if named := [n for n in ("lora_rank", "lora_alpha", "lora_target_modules") if getattr(hyper, n) is not None]:
            raise RecipeError(
                f"{named[0]} with method sft, which trains every weight", cure="method: lora, or leave it out"
            )
        return None
    rank = hyper.lora_rank or presets.rank(ask.method, base.size)
    return {
        "rank": rank,
        "alpha": hyper.lora_alpha or 2 * rank,
        "targets": list(hyper.lora_target_modules) if hyper.lora_target_modules else "all-linear",
        "quantize": "nf4" if ask.method == "qlora" else "none",
    }


def _name(ask: Ask, document: Mapping[str, Any]) -> str:
    """The line: the suffix, the name of a whole recipe, or the base and the method, so that a later job is its next version."""
    return slug(ask.suffix or document.get("name") or f"{ask.model.rsplit('/', 1)[-1]}-{ask.method}")


def slug(text: Any) -> str:
    """A name of a recipe nearest to a text. Raises RecipeError when nothing is left of it."""
    made = re.sub(r"[^a-z0-9_]+", "-", str(text).lower()).strip("-_")[:60].strip("-_")
    if not made:
        raise RecipeError(
            f"suffix {text!r} holds no letter or digit", cure="lower-case letters, digits, - and _, at most 60"
        )
    return made


def _revision(document: Mapping[str, Any], base: Base) -> Any:
    """Of the base: the offer's pin, else a commit of the Hub that the request names."""
    said = document.get("base_model", {}).get("revision")
    if said in (None, base.revision):
        return base.revision
    if base.revision is None and base.uri.startswith("hf://") and re.fullmatch(r"[0-9a-f]{40}", str(said)):
        return said
    raise RecipeError(
        f"platform.recipe.base_model.revision is {said!r}",
        why="Only a commit of the Hub can be asked for, where the platform pins none itself.",
        cure="leave it out",
    )


def _told(found: Recipe, ask: Ask, base: Base) -> dict[str, Any]:
    section = found.finetune
    usual = presets.learning_rate(ask.method, base.size, 1.0)
    told = {
        "n_epochs": section.epochs,
        "batch_size": section.windows_per_step,
        "learning_rate_multiplier": float(f"{section.learning_rate / usual:.6g}"),
    }
    return told | ({"beta": section.preference.beta} if section.preference else {})
