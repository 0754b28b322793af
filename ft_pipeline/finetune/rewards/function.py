"""What a reward of a recipe names: the function or the reward model, its source, and the `reward_function` artifact that its calibration is."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError, RecipeError, TrainingFailed, did_you_mean
from ft_pipeline.finetune.rewards.builtin import BUILT_IN
from ft_pipeline.finetune.rewards.trained import TrainedReward, is_model
from ft_pipeline.named_function import function_named
from ft_pipeline.named_function import source_of as source_named
from ft_pipeline.recipe_reinforce import MODEL, Reward
from ft_pipeline.store.fingerprint import code_digest, sha256_bytes
from ft_pipeline.store.manifest import Spec
from ft_pipeline.store.paths import resolve

KIND = "reward_function"
HERE = Path(__file__).parent
PROBES = "probes.jsonl"
CALIBRATION = "calibration.json"
Score = Callable[..., list[float]]


def reward_spec(reward: Reward, *, home: Path, trained: TrainedReward | None = None) -> Spec:
    """What a calibrated reward is made of: name, parameters, its source and the probes; of a reward model, the model and its base.

    Imports nothing of the recipe's.

    Weight and limits are no part of it: changing them asks for no new calibration. Raises RecipeError for an unknown name
    and for missing probes.
    """
    config = {
        "name": reward.name,
        "parameters": reward.parameters,
        "pass_at": reward.pass_at,
        "probes": sha256_bytes(probes_of(reward, home=home)),
    }
    if trained is None:
        return Spec(kind=KIND, config=config, parents={}, code=reward_code(reward))
    parents = {"model": trained.model.ref, "base": trained.base.ref}
    return Spec(kind=KIND, config={**config, "reward_model": trained.config}, parents=parents, code=reward_code(reward))


def reward_code(reward: Reward) -> str:
    """Digest of the function's source and of how it is called and measured; of a reward model, also of how it is asked."""
    asked = [HERE / "trained.py", HERE.parent / "score.py"] if is_model(reward) else []
    return code_digest(source_of(reward), HERE / "function.py", HERE / "calibrate.py", *asked)


def probes_of(reward: Reward, *, home: Path) -> bytes:
    """The probes of a reward as JSONL bytes. A built-in with parameters of the recipe's own needs probes of the recipe's own."""
    if reward.probes is not None:
        path = Path(resolve(reward.probes, home))
        if not path.is_file():
            raise RecipeError(
                f"reward {reward.name}: no probes at {path}", cure="JSONL lines of {completion, answer, pass}"
            )
        return path.read_bytes()
    shipped = HERE / "probes" / f"{reward.name}.jsonl"
    if reward.name not in BUILT_IN or reward.parameters:
        raise RecipeError(
            f"reward {reward.name} with parameters {reward.parameters} has no probes",
            why="Nobody knows yet whether it passes what is right and fails what is wrong.",
            cure="probes: a JSONL file of {completion, answer, pass}, twenty of each at least",
        )
    return shipped.read_bytes()


def source_of(reward: Reward) -> Path:
    """The file whose code decides the reward. Raises RecipeError when there is none; the module itself is not imported."""
    if reward.name in BUILT_IN:
        return HERE / "builtin.py"
    if is_model(reward):
        return HERE / "scorer.py"
    if ":" not in reward.name:
        raise RecipeError(
            f"reward {reward.name}: {did_you_mean(reward.name, BUILT_IN)}; or package.module:function, or model:DIGEST"
        )
    return source_named(reward.name, what="reward")


def function_of(reward: Reward, trained: TrainedReward | None = None, *, device: str = "cpu") -> Score:
    """The function with its parameters, checked at each call: one finite number or None (not scored: NaN) a completion.

    trained: the reward model that the reward names, which is loaded. Raises RecipeError when it cannot be called as
    `f(completions, **columns)`.
    """
    function = (
        _asking(trained, device) if trained else BUILT_IN.get(reward.name) or function_named(reward.name, what="reward")
    )
    try:
        inspect.signature(function).bind(
            completions=[], prompts=[], answer=[], prompt_ids=[], completion_ids=[], row_id=[], **reward.parameters
        )
    except TypeError as error:
        raise RecipeError(
            f"reward {reward.name} with parameters {reward.parameters} cannot be called: {error}",
            cure="def reward(completions, answer, *, your_parameter, **columns) -> list[float]",
        ) from None

    def score(completions: Sequence[str], **columns: Any) -> list[float]:
        made = function(completions=list(completions), **columns, **reward.parameters)
        return _checked(reward.name, made, len(completions))

    return score


def short_name(reward: Reward) -> str:
    """Of its columns: a built-in's name, the function alone of an import path, the first digits of a model's digest."""
    return f"model_{reward.name.removeprefix(MODEL)[:8]}" if is_model(reward) else reward.name.rpartition(":")[2]


def _asking(trained: TrainedReward, device: str) -> Score:
    # by name: a door imports this file and never torch
    return importlib.import_module("ft_pipeline.finetune.rewards.scorer").scored_by(trained, device=device)


def _checked(name: str, made: Any, count: int) -> list[float]:
    if not isinstance(made, Sequence) or len(made) != count:
        raise TrainingFailed(f"reward {name} gave {type(made).__name__} for {count} completions, not one number each")
    values = [math.nan if value is None else float(value) for value in made]
    if any(math.isinf(v) for v in values) or any(
        math.isnan(v) for v, m in zip(values, made, strict=True) if m is not None
    ):
        raise TrainingFailed(
            f"reward {name} gave a value that is no finite number: {made}", cure="return None for what cannot be scored"
        )
    return values


def parameters_in(probe: Mapping[str, Any], reward: Reward) -> Reward:
    """The reward with the parameters of one probe: the shipped probes of a built-in that needs some carry them."""
    from dataclasses import replace

    if "parameters" not in probe:
        return reward
    if reward.probes is not None:
        raise DataError(f"a probe of reward {reward.name} holds parameters, which only shipped probes may")
    return replace(reward, parameters=dict(probe["parameters"]))
