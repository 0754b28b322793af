"""The section of a recipe for methods that learn from their own completions: rewards, sampling, guards."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from ft_pipeline.recipe_data import STRICT

PolicyMethod = Literal["grpo", "dr_grpo", "dapo", "gspo", "bnpo", "rloo", "remax", "ppo", "on_policy_distill", "kdrl"]
"""Methods of this section."""
MODEL = "model:"
"""Before the digest of a reward model in the name of a reward."""
LEAST_DIGITS = 12
"""Of a digest: fewer may name another artifact tomorrow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """One reward function. It must be calibrated before training: `ft-pipeline rewards calibrate RECIPE`."""

    __pydantic_config__ = STRICT
    name: str
    """Of a built-in (`ft-pipeline rewards list`), `package.module:function` with TRL's signature, or `model:DIGEST` of an adapter that
    method reward or process_reward has trained."""
    weight: float = 1.0
    """In the sum of all rewards."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function. Of a reward model: normalize (sigmoid, none); of one for steps: over (min, product, mean, last)."""
    probes: str | None = None
    """JSONL of {completion, answer, pass}; may be left out for a built-in that comes with its own."""
    pass_at: float = 0.5
    """From this reward on a completion counts as passed."""
    max_false_pass: float = 0.0
    """Largest share of probes that should fail and pass: what a policy will find and exploit."""
    max_false_fail: float = 0.05
    """Largest share of probes that should pass and fail."""

    def __post_init__(self) -> None:
        digest = self.name.removeprefix(MODEL)
        if digest != self.name and not re.fullmatch(f"[0-9a-f]{{{LEAST_DIGITS},64}}", digest):
            raise ValueError(
                f"reward {self.name}: behind {MODEL} stands the digest of an adapter, {LEAST_DIGITS} to 64 of its hex digits"
            )
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(f"weight {self.weight} of reward {self.name} must be a number other than 0")
        for name in ("max_false_pass", "max_false_fail"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Guards:
    """From where on a run tells that it may be gaming its reward. Nothing is stopped: a person looks at the rollouts."""

    __pydantic_config__ = STRICT
    kl: float = 15.0
    """Nats of a whole completion against the reference."""
    length_ratio: float = 2.0
    """Mean length against that of the first steps, longer or shorter."""
    reward_drop: float = 0.2
    """Fall of the mean reward below its best."""
    reward_jump: float = 0.5
    """Rise of the mean reward from one group of steps to the next: a leap is more often an exploit than learning."""
    flat_groups: float = 0.9
    """Share of prompts whose completions all have one reward: they teach nothing."""
    window_steps: int = 10
    """Steps that are averaged."""

    def __post_init__(self) -> None:
        if self.window_steps < 1 or self.length_ratio <= 1:
            raise ValueError(
                f"window_steps {self.window_steps} must be at least 1, length_ratio {self.length_ratio} above 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Critic:
    """ppo (arXiv 1707.06347): what its value head learns, and how it tells how good each token was."""

    __pydantic_config__ = STRICT
    discount: float = 1.0
    """gamma: worth of a reward one token later. 1: a right answer is worth the same however long it is."""
    decay: float = 0.95
    """lambda of generalized advantages (arXiv 1506.02438). 1 trusts the rewards alone, 0 the value head alone."""
    value_weight: float = 0.1
    """Of the value loss beside the policy's: head and policy share their layers."""
    value_clip: float | None = 0.2
    """How far a value may move from the one at sampling before its loss stops falling; null does not clip."""
    entropy_weight: float = 0.0
    """Of the entropy of each token's distribution, which is kept high; 0 does not."""
    whiten: bool = True
    """Advantages of a micro-batch with mean 0 and deviation 1 (arXiv 1909.08593)."""

    def __post_init__(self) -> None:
        for name in ("discount", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"critic.{name} {getattr(self, name)} must be between 0 and 1")
        for name in ("value_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"critic.{name} {getattr(self, name)} must be at least 0")
        if self.value_clip is not None and not 0 < self.value_clip < math.inf:
            raise ValueError(f"critic.value_clip {self.value_clip} must be above 0, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reinforce:
    """Completions are sampled from the policy itself, scored, and used for one or some updates: a rollout is a micro-batch."""

    __pydantic_config__ = STRICT
    max_new_tokens: int
    rewards: tuple[Reward, ...] = ()
    """All but on_policy_distill need one."""
    completions: int = 8
    """Sampled for each prompt."""
    temperature: float = 1.0
    """Of sampling and of the log-probabilities alike. No top-p: its samples are not the policy's."""
    kl_weight: float = 0.0
    """Of the divergence from the reference, which is the base model."""
    clip_low: float | None = None
    clip_high: float | None = None
    """How far the ratio of training to sampling probability counts, below and above 1. Left out: the method's own."""
    updates_per_rollout: int = 1
    """Optimizer steps on each rollout (mu of 2402.03300). From the second on the ratio departs from 1, and the clip holds it."""
    critic: Critic | None = None
    """ppo alone. Left out: the habits of Critic."""
    overlong_tokens: int | None = None
    """The last so many of max_new_tokens cost up to 1 (2503.14476, eq. 13). Left out: a fifth for dapo, else none."""
    resamples: int | None = None
    """How often a prompt without variance in its rewards is sampled again. Left out: 2 for dapo, else 0."""
    teacher: str | None = None
    """on_policy_distill, kdrl: digest of a base_model artifact in the store, of the same vocabulary."""
    teacher_weight: float = 1.0
    """kdrl: of the divergence from the teacher, beside the reward."""
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.completions < 1:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} and completions {self.completions} must be at least 1"
            )
        if self.updates_per_rollout < 1:
            raise ValueError(f"updates_per_rollout {self.updates_per_rollout} must be at least 1")
        for name in ("temperature", "kl_weight", "clip_low", "clip_high", "teacher_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} {value} must be at least 0")
        if self.temperature == 0:
            raise ValueError("temperature 0 samples one completion, which teaches nothing: it must be above 0")
