"""The policy methods as data: what each is made of, what it needs of a recipe, and which artifacts it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ft_pipeline.encode.artifact import base_digests
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.rewards.calibrate import calibrated_rewards
from ft_pipeline.recipe import Finetune
from ft_pipeline.recipe_reinforce import Reinforce
from ft_pipeline.store.artifacts import Artifact, Store

Ratio = Literal["token", "sequence", "whole"]
"""Of training to sampling probability: of each token; the geometric mean of a completion's tokens; of the whole completion."""
Count = Literal["completion", "token", "constant", "whole"]
"""What is averaged: completions by their mean token; all tokens alike; tokens / max_new_tokens; completions by their sum."""
Baseline = Literal["group_normalized", "centred", "leave_one_out", "above_greedy", "critic", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What one method is made of."""

    baseline: Baseline
    ratio: Ratio = "token"
    count: Count = "completion"
    clip_low: float = 0.2
    clip_high: float = 0.2
    resamples: int = 0
    overlong_share: float = 0.0
    """Of max_new_tokens: the end that is punished."""
    kl_in_reward: bool = False
    """The divergence from the reference lowers the reward instead of being a part of the loss: of each token with a critic."""
    teacher: bool = False
    rewarded: bool = True


OBJECTIVES: Mapping[str, Objective] = {
    "grpo": Objective(baseline="group_normalized"),
    "dr_grpo": Objective(baseline="centred", count="constant"),
    "dapo": Objective(baseline="group_normalized", count="token", clip_high=0.28, resamples=2, overlong_share=0.2),
    "gspo": Objective(baseline="group_normalized", ratio="sequence", clip_low=3e-4, clip_high=4e-4),
    "bnpo": Objective(baseline="group_normalized", count="token"),
    "rloo": Objective(baseline="leave_one_out", ratio="whole", count="whole", kl_in_reward=True),
    "remax": Objective(baseline="above_greedy", ratio="whole", count="whole", kl_in_reward=True),
    "ppo": Objective(baseline="critic", count="token", kl_in_reward=True),
    "on_policy_distill": Objective(baseline="none", count="token", teacher=True, rewarded=False),
    "kdrl": Objective(baseline="group_normalized", teacher=True),
}
"""Papers: 2402.03300, 2503.20783, 2503.14476, 2507.18071, TRL's loss_type bnpo (tokens of the micro-batch), 2402.14740, 2310.10505,
1707.06347 with the token rewards of 1909.08593, 2306.13649 with its reverse KL, 2506.02208."""
SIBLINGS = ("group_normalized", "centred", "leave_one_out")
"""Baselines that are made of the other completions of a prompt."""
TEACHER = "teacher_model"
"""Role of a teacher's base_model artifact; the roles of rewards are `reward_1`, `reward_2`, ..."""


def is_policy(section: Finetune) -> bool:
    """True for a method that samples completions of its own."""
    return section.method in OBJECTIVES


def refuse_policy(section: Finetune) -> None:
    """Raises RecipeError for a section of a policy method that cannot train, or holds what would change nothing."""
    if not is_policy(section):
        return
    plan, objective = section.reinforce, OBJECTIVES[section.method]
    if plan is None:
        raise RecipeError(
            f"finetune.method {section.method} needs finetune.reinforce",
            cure="reinforce: {max_new_tokens: 64, rewards: [...]}",
        )
    if objective.rewarded != bool(plan.rewards):
        raise RecipeError(
            f"finetune.method {section.method} with {len(plan.rewards)} rewards",
            why="It learns from rewards." if objective.rewarded else "It learns from the teacher alone.",
            cure="`ft-pipeline rewards list` shows the built-in ones"
            if objective.rewarded
            else "method: kdrl takes both",
        )
    if objective.teacher != (plan.teacher is not None):
        raise RecipeError(
            f"finetune.method {section.method} with reinforce.teacher {plan.teacher}",
            cure="the digest of a base_model artifact" if objective.teacher else "leave it out, or method: kdrl",
        )
    if plan.critic is not None and objective.baseline != "critic":
        raise RecipeError(
            f"finetune.reinforce.critic belongs to ppo, not to {section.method}",
            why="It would change nothing, and look as if it did.",
            cure="leave it out, or method: ppo",
        )
    _refuse_sampling(section, plan, objective)


def _refuse_sampling(section: Finetune, plan: Reinforce, objective: Objective) -> None:
    if objective.baseline in SIBLINGS and plan.completions < 2:
        raise RecipeError(
            f"finetune.method {section.method} with reinforce.completions {plan.completions}",
            why="It compares the completions of a prompt with each other.",
            cure="completions: 8",
        )
    if objective.count == "token" and objective.resamples and section.windows_per_micro != section.windows_per_step:
        raise RecipeError(
            f"finetune.method {section.method} with windows_per_micro {section.windows_per_micro} of {section.windows_per_step}",
            why="It weighs all tokens of a step alike, and how many they are is known when all are sampled.",
            cure="windows_per_micro equal to windows_per_step, or method: bnpo, which weighs those of a micro-batch",
        )
    unread = [] if objective.rewarded else ["kl_weight", "clip_low", "clip_high", "overlong_tokens", "resamples"]
    if objective.baseline == "critic":
        unread = ["resamples"]  # a prompt whose completions all have one reward teaches a critic too
    if given := next((name for name in unread if getattr(plan, name)), None):
        raise RecipeError(
            f"finetune.reinforce.{given} {getattr(plan, given)} changes nothing in {section.method}",
            cure="leave it out",
        )


def policy_parents(
    section: Finetune, *, base: Artifact, store: Store, home: Path, find: Callable[[str], Artifact]
) -> dict[str, Artifact]:
    """Role -> the calibrated rewards, their models and the teacher of a recipe; empty for other methods.

    find: the artifact whose digest begins so. Raises RecipeError for a reward that is not calibrated within its limits, and for a
    teacher of another tokenizer.
    """
    if not is_policy(section):
        return {}
    found = calibrated_rewards(section, store=store, home=home, base=base, find=find)
    if section.reinforce is not None and section.reinforce.teacher is not None:
        found[TEACHER] = _teacher(find(section.reinforce.teacher), base)
    return found


def _teacher(found: Artifact, base: Artifact) -> Artifact:
    if found.manifest.kind != base.manifest.kind:
        raise RecipeError(f"finetune.reinforce.teacher is of kind {found.manifest.kind}, not a {base.manifest.kind}")
    if base_digests(found)["tokenizer"] != base_digests(base)["tokenizer"]:
        raise RecipeError(
            "finetune.reinforce.teacher has another tokenizer than the base model",
            why="Its probabilities would be of other tokens.",
            cure="a teacher of the same family",
        )
    return found
