"""A trained reward model as a reward: what `model:DIGEST` in a recipe means, and what of it is refused before anything trains. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.encode.artifact import base_digests
from ft_pipeline.errors import RecipeError, did_you_mean
from ft_pipeline.recipe import Finetune, identity
from ft_pipeline.recipe_reinforce import MODEL, Reward
from ft_pipeline.store.artifacts import Artifact, Store

KINDS = ("adapter", "checkpoints")
PARAMETERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "reward": {"normalize": ("sigmoid", "none")},
    "process_reward": {"over": ("min", "product", "mean", "last")},
}
"""Method of the reward model -> parameter of the reward -> its values, the default first (scorer.py says what they do)."""
Find = Callable[[str], Artifact]
"""The artifact whose digest begins so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedReward:
    """A reward model and what its numbers depend on."""

    model: Artifact
    """The artifact that the recipe names: an adapter, or the checkpoints it was packaged from. Both hold the tensors."""
    base: Artifact
    section: Finetune
    """How it was trained."""
    step_separator: str
    """Of the steps that it was trained on."""

    @property
    def config(self) -> dict[str, Any]:
        """What a calibration writes down, so that a training process needs no further artifact."""
        return {"trained_as": identity(self.section), "step_separator": self.step_separator}


def is_model(reward: Reward) -> bool:
    """True for `model:DIGEST`."""
    return reward.name.startswith(MODEL)


def trained_of(reward: Reward, *, store: Store, find: Find | None) -> TrainedReward | None:
    """The reward model that a reward names; None for a function.

    Raises RecipeError when the artifact is no trained reward model or a parameter is none of its method, what `find` raises when
    there is no such digest.
    """
    if not is_model(reward):
        return None
    if find is None:
        raise RecipeError(f"reward {reward.name}: there is no catalog to look the digest up in")
    model = find(reward.name.removeprefix(MODEL))
    if model.manifest.kind not in KINDS:
        raise RecipeError(
            f"reward {reward.name} is of kind {model.manifest.kind}, not an {' or '.join(KINDS)}",
            cure="the digest on the page of the adapter that a recipe of method reward or process_reward has made",
        )
    trained = (
        model.manifest
        if model.manifest.kind == "checkpoints"
        else store.recorded(model.manifest.parents["checkpoints"])
    )
    section = _section(trained.config)
    _refuse_parameters(reward, section.method)
    shards, base = store.recorded(trained.parents["shards"]), store.fetch(trained.parents["base"])
    return TrainedReward(model=model, base=base, section=section, step_separator=shards.config["step_separator"])


def trained_given(role: str, given: Mapping[str, Artifact | None]) -> TrainedReward:
    """The same in a training process, from its parents: the calibration under `role`, and those of `trained_roles`."""
    calibration, model, base = (given.get(name) for name in (role, *trained_roles(role)))
    assert calibration is not None, "refuse_uncalibrated comes first"
    if model is None or base is None or calibration.manifest.parents["model"] != model.ref:
        raise RecipeError(
            f"{role} was calibrated with another reward model than this job has", cure="run the recipe again"
        )
    told = calibration.manifest.config["reward_model"]
    return TrainedReward(
        model=model, base=base, section=_section(told["trained_as"]), step_separator=told["step_separator"]
    )


def trained_roles(role: str) -> tuple[str, str]:
    """Roles of a reward model and of its base among the parents of `checkpoints`: `reward_1_model`, `reward_1_base`."""
    return f"{role}_model", f"{role}_base"


def refuse_other_words(reward: Reward, trained: TrainedReward, base: Artifact) -> None:
    """Raises RecipeError when the policy's base model has another tokenizer or chat template than the reward model's."""
    mine, theirs = base_digests(base), base_digests(trained.base)
    if other := [name for name in ("tokenizer", "chat_template") if mine[name] != theirs[name]]:
        raise RecipeError(
            f"reward {reward.name} has another {' and '.join(other)} than the base model of this recipe",
            why="It reads the policy's own tokens: they would be other words to it.",
            cure="a reward model that was trained from this base model, or one of the same family",
        )


def _section(config: Mapping[str, Any]) -> Finetune:
    from pydantic import TypeAdapter

    return TypeAdapter(Finetune).validate_json(json.dumps(dict(config)))


def _refuse_parameters(reward: Reward, method: str) -> None:
    if method not in PARAMETERS:
        raise RecipeError(
            f"reward {reward.name} was trained by {method}",
            why="It writes answers and gives no number for one.",
            cure=f"a model that was trained by {' or '.join(PARAMETERS)}",
        )
    for name, value in reward.parameters.items():
        allowed = PARAMETERS[method].get(name)
        if allowed is None:
            raise RecipeError(
                f"reward {reward.name}: a model trained by {method} has no parameter {name}",
                cure=did_you_mean(name, PARAMETERS[method]),
            )
        if value not in allowed:
            raise RecipeError(f"reward {reward.name}: {name} {value!r} is none of {', '.join(allowed)}")
