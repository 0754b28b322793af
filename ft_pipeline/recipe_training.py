"""The sections of a recipe that decide how the weights change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ft_pipeline.recipe_data import STRICT
from ft_pipeline.recipe_reinforce import PolicyMethod, Reinforce

PairLoss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop",
]  # fmt: skip
"""Losses of dpo by TRL's names. sigmoid_norm is LN-DPO: log-ratios by token."""
LabelLoss = Literal["kto", "apo_zero_unpaired"]
"""Losses of kto by TRL's names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): W + (alpha / rank) B A."""

    __pydantic_config__ = STRICT
    rank: int
    alpha: int
    dropout: float = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    quantize: Literal["none", "nf4"] = "none"
    """nf4: the base in four bits while it trains (QLoRA, arXiv 2305.14314); the adapter is one for the base as it is."""
    rslora: bool = False
    """alpha / sqrt(rank) in place of alpha / rank (arXiv 2312.03732)."""
    dora: bool = False
    """Length and direction of each weight apart (arXiv 2402.09353). PEFT serves it, but neither vLLM nor a batch of several adapters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """What dpo, simpo, orpo and kto need. A field of another method is refused."""

    __pydantic_config__ = STRICT
    beta: float
    """dpo, kto: how far the model may leave the reference (.1 is usual). simpo: scale of the reward (2 to 2.5). orpo: weight of the odds ratio (.1)."""
    loss: PairLoss | LabelLoss | None = None
    """dpo: sigmoid when left out. kto: kto when left out. The other methods are their own loss."""
    label_smoothing: float = 0.0
    """Share of pairs that are the wrong way round. robust, exo_pair, aot, aot_unpaired; simpo."""
    gamma: float = 0.0
    """simpo: the margin that is asked for between the rewards (arXiv 2405.14734: .3 to 1.6 times beta)."""
    sft_weight: float = 0.0
    """dpo, simpo: weight of the loss of the chosen answers (RPO, CPO). orpo has it with weight 1."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    """kto: weights of wanted and unwanted rows; rows x weight should be within a third of each other."""
    reference: str = "base"
    """dpo, kto: `base`; or the digest of a base_model artifact; or that of an adapter on this base, or a model line `tenant/name` for its
    newest adapter: then training starts from that adapter, whose LoRA shape this recipe must have."""

    def __post_init__(self) -> None:
        if not self.beta > 0 or not math.isfinite(self.beta):
            raise ValueError(f"beta {self.beta} must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing {self.label_smoothing} must be at least 0 and below .5")
        for name in ("gamma", "sft_weight", "desirable_weight", "undesirable_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModel:
    """What a reward model of pairs (Bradley-Terry) may need."""

    __pydantic_config__ = STRICT
    center_weight: float = 0.0
    """Weight of (chosen + rejected)^2, which holds the rewards around 0 (arXiv 2312.09244: .01)."""

    def __post_init__(self) -> None:
        if not 0 <= self.center_weight < math.inf:
            raise ValueError(f"center_weight {self.center_weight} must be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Distill:
    """Knowledge of a teacher: alpha x divergence(teacher, student) + (1 - alpha) x the loss of the tokens themselves."""

    __pydantic_config__ = STRICT
    teacher: str
    """Digest of a base_model artifact in the store, of the same vocabulary (or `base`)."""
    alpha: float
    """1 is the teacher alone, 0 the text alone."""
    top_k: int = 32
    """Tokens of the teacher that are kept at each place; all others are one more, so that the shares add up to 1."""
    beta: float = 0.0
    """0 is KL(teacher | student), 1 KL(student | teacher), between them the Jensen-Shannon divergence of arXiv 2306.13649."""
    temperature: float = 1.0
    """Of both, in the divergence."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be between 0 and 1")
        if self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetune:
    """How the weights change. A decision (learning rate, epochs, batch) has no default; a habit has one."""

    __pydantic_config__ = STRICT
    method: Literal["sft", "cpt", "dpo", "simpo", "orpo", "kto", "reward", "process_reward", "distill", PolicyMethod]
    lora: Lora | None
    """`null` trains every weight."""
    learning_rate: float
    epochs: int
    windows_per_step: int
    """Windows in one optimizer step over all ranks; pairs or rows where the method trains on those."""
    windows_per_micro: int
    """Windows in one forward pass: composed independently of the world size."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    neftune_alpha: float = 0.0
    """sft, cpt: uniform noise of at most alpha / sqrt(row length x width) on the embeddings in training (arXiv 2310.05914: 5 to 15)."""
    evaluate_every_steps: int | None = None
    """Steps between two validation losses; null measures where an epoch ends. Before the first step and after the last one always."""
    early_stop_evaluations: int | None = None
    """Stop after so many validation losses in a row that were not the best; null trains to the end."""
    on_loss_spike: Literal["warn", "stop"] = "warn"
    """What happens when five losses in a row are twice the mean of those before (watch.py)."""
    resume_certificate: bool = True
    """Tries out on a tiny model, in seconds, that a killed run of this recipe ends in the same bytes."""
    preference: Preference | None = None
    """dpo, simpo, orpo, kto."""
    reward: RewardModel | None = None
    distill: Distill | None = None
    reinforce: Reinforce | None = None
    """grpo and its kin, and what learns from a teacher on completions of its own."""

    def __post_init__(self) -> None:
        if self.windows_per_step % self.windows_per_micro:
            raise ValueError(
                f"windows_per_step {self.windows_per_step} is not a multiple of windows_per_micro {self.windows_per_micro}"
            )
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate {self.learning_rate} must be above 0")
        if not 0 <= self.neftune_alpha < math.inf or (self.neftune_alpha and self.method not in ("sft", "cpt")):
            raise ValueError(f"neftune_alpha {self.neftune_alpha} must be at least 0, and is for sft and cpt only")
        for name in ("evaluate_every_steps", "early_stop_evaluations"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} {count} must be at least 1")
