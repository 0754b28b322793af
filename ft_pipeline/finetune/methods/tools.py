"""What a policy method needs besides the model: tokenizer, calibrated rewards, reference, teacher, a place for its rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.batches import Batch
from ft_pipeline.finetune.model import Trainee, load_trainee
from ft_pipeline.finetune.policies import OBJECTIVES
from ft_pipeline.finetune.rewards.calibrate import score_functions
from ft_pipeline.finetune.rewards.function import Score, short_name
from ft_pipeline.finetune.rollout import still, stop_ids
from ft_pipeline.finetune.rollout_store import Rollouts
from ft_pipeline.finetune.schedule import noise_seed
from ft_pipeline.finetune.value_head import heard, values_of
from ft_pipeline.recipe import Finetune
from ft_pipeline.recipe_reinforce import Reinforce
from ft_pipeline.store.artifacts import Artifact

NEAR = 64
"""Micro-batches in which the number of the next one is looked for first."""


MOST = 10_000_000
"""A run of more is none."""


@dataclass
class PolicyTools:
    """Made once for a run."""

    plan: Reinforce
    seed: int
    tokenizer: Any
    stops: frozenset[int]
    reads_tokens: int
    scores: Sequence[Score]
    names: tuple[str, ...]
    """Of the rewards, each once."""
    teacher: Trainee | None
    frozen: Trainee | None
    """The reference of a full fine-tuning; with LoRA it is the model without its adapter."""
    rollouts: Rollouts | None
    next_micro: int = 0
    """Where the number of a micro-batch is looked for first."""

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text without special ones."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def logits(self, trainee: Trainee, rows: Batch) -> torch.Tensor:
        """[N, vocabulary] in float32, divided by the temperature, before each completion token."""
        return self.answers(trainee, rows)[0]

    def answers(self, trainee: Trainee, rows: Batch, *, values: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits, and the values [N] of the same forward pass in float32; none ([0]) where they are not asked for."""
        with heard(trainee.model) if values else nullcontext([]) as states:
            logits = self._logits(trainee, rows)
        if not values:
            return logits, logits.new_zeros(0)
        hidden = states[-1].flatten(0, -2)
        if rows.segments is None:
            hidden = hidden.index_select(0, rows.predict)
        return logits, values_of(trainee.model, hidden)

    def _logits(self, trainee: Trainee, rows: Batch) -> torch.Tensor:
        inputs: dict[str, Any] = {
            "input_ids": rows.input_ids, "position_ids": rows.position_ids, "attention_mask": None, "use_cache": False,
        }  # fmt: skip
        if rows.segments is not None:
            found = trainee.model(**inputs, segments=rows.segments, logits_to_keep=rows.predict).logits[0]
        else:
            found = trainee.model(**inputs).logits.flatten(0, 1).index_select(0, rows.predict)
        return found.float() / self.plan.temperature

    @contextmanager
    def reference(self, trainee: Trainee) -> Iterator[Trainee]:
        """The model that the policy began as, in eval mode."""
        if self.frozen is not None:
            yield self.frozen
            return
        with still(trainee), trainee.model.disable_adapter():
            yield trainee

    def micro(self) -> int:
        """Number of the global micro-batch that the loop has seeded torch for."""
        seed = torch.initial_seed()
        near = range(self.next_micro, self.next_micro + NEAR)
        self.next_micro = next(n for n in chain(near, range(MOST)) if noise_seed(self.seed, n) == seed)
        return self.next_micro

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rollout of this micro-batch down, once the run records."""
        if self.rollouts is not None and self.rollouts.recording:
            self.rollouts.write(self.micro(), rows)


def policy_tools(
    section: Finetune, *, base: Path, device: str = "cpu", rollouts: Rollouts | None = None,
    teacher_model: Artifact | None = None, **given: Any,
) -> PolicyTools:  # fmt: skip
    """The tools of a section. base: folder of the base model; given: the artifact of each reward as `reward_1`, `reward_2`, ..., of a
    reward model also `reward_1_model` and `reward_1_base`.

    Raises RecipeError for a reward that is not calibrated as it is now or exceeds its limits, and for a missing teacher.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    plan, objective = section.reinforce, OBJECTIVES[section.method]
    if plan is None:
        raise RecipeError(f"finetune.method {section.method} needs finetune.reinforce")
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    has_generation = (base / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(base) if has_generation else config
    if objective.teacher and teacher_model is None:
        raise RecipeError(f"finetune.method {section.method} needs finetune.reinforce.teacher")
    whole = section.lora is None and objective.rewarded
    return PolicyTools(
        plan=plan, seed=section.seed, tokenizer=tokenizer, stops=stop_ids(tokenizer, generation),
        reads_tokens=getattr(config, "max_position_embeddings", None) or 1 << 30,
        scores=score_functions(plan, given, device=device), names=_names(plan),
        teacher=_frozen(teacher_model.folder, section, device) if objective.teacher and teacher_model else None,
        frozen=_frozen(base, section, device) if whole else None, rollouts=rollouts,
    )  # fmt: skip


def tools_of_canary(tools: PolicyTools, section: Finetune, base: Path) -> PolicyTools:
    """The same tools for a tiny base model: it is the reference and the teacher too, and nothing is written down."""
    assert section.reinforce is not None
    teacher, frozen = (there and _frozen(base, section, there.device) for there in (tools.teacher, tools.frozen))
    return replace(tools, plan=section.reinforce, rollouts=None, teacher=teacher, frozen=frozen)


def _frozen(folder: Path, section: Finetune, device: str) -> Trainee:
    """A model that is only asked: every weight fixed, eval mode. Loaded before training, since loading sets torch's seed."""
    trainee = load_trainee(folder, replace(section, lora=None), device=device)
    trainee.model.eval().requires_grad_(False)
    return trainee


def _names(plan: Reinforce) -> tuple[str, ...]:
    """Short name of each reward; a second one of a name gets its number."""
    short = [short_name(reward) for reward in plan.rewards]
    return tuple(n if short.index(n) == place else f"{n}_{place + 1}" for place, n in enumerate(short))
