"""What a method is: which rows it reads, how they become tensors, and the loss of them. Everything else, the loop owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, get_args

import torch

from ft_pipeline.errors import RecipeError, did_you_mean
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.recipe import Finetune
from ft_pipeline.recipe_reinforce import PolicyMethod
from ft_pipeline.store.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """The loss of one micro-batch, summed and not yet divided: the loop divides by the weight of the whole step."""

    total: torch.Tensor
    """Scalar with gradient."""
    facts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name -> sum over the micro-batch, without gradient; divided by the same weight they are this step's means."""


class Method(Protocol):
    """One way to change weights. Made once for a run; holds what it needs besides the model (reference log-probs, beta)."""

    def items(self, shards: Artifact, split: str) -> Sequence[Any]:
        """What the sampler draws from, in order: windows, pairs, prompts. Each has `row_ids`."""
        ...

    def weight(self, item: Any) -> float:
        """What an item counts in the mean of a step: trained tokens of a window, 1 for a pair."""
        ...

    def batch(self, trainee: Trainee, items: Sequence[Any]) -> Any:
        """The tensors of some items, with `tokens`: how many real ones are computed."""
        ...

    def loss(self, trainee: Trainee, batch: Any) -> Loss:
        """The loss of a batch, under the trainee's precision."""
        ...


METHODS: Mapping[str, str] = {
    "sft": "causal",
    "cpt": "causal",
    "dpo": "preference",
    "simpo": "preference",
    "orpo": "preference",
    "kto": "kto",
    "reward": "reward",
    "process_reward": "process_reward",
    "distill": "distill",
    **dict.fromkeys(get_args(PolicyMethod), "policy"),
}
"""Method of a recipe -> the module beside this file whose `method(section)` makes it."""


def method_of(section: Finetune, **given: Any) -> Method:
    """The method that a section names. `given`: what methods may need, each takes its own: `cache` (a folder), further artifacts. Raises RecipeError for an unknown one."""
    if section.method not in METHODS:
        raise RecipeError(f"finetune.method {section.method}: {did_you_mean(section.method, METHODS)}")
    made: Method = import_module(f"ft_pipeline.finetune.methods.{METHODS[section.method]}").method(section, **given)
    return made
