"""grpo, dr_grpo, dapo, gspo, bnpo, rloo, remax, on_policy_distill, kdrl: sampled from the policy itself, one update a rollout.

A micro-batch is a rollout: drawn, scored and used within one step, from the weights of that step. Nothing of it outlives the
step, so a resumed run draws the same completions and is the same bit for bit. The ratio of training to sampling probability
differs from 1 only by what differs between the two: dropout, and the rounding of a KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ft_pipeline.encode.artifact import read_prompts
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.batches import Batch
from ft_pipeline.finetune.methods import advantages as worth
from ft_pipeline.finetune.methods import objectives as losses
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.methods.scoring import Scores, scored
from ft_pipeline.finetune.methods.tools import PolicyTools, policy_tools
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.policies import OBJECTIVES, Objective
from ft_pipeline.finetune.rollout import Ask, Completion, Sampling, ask_of, batch_of_completions, sample
from ft_pipeline.finetune.rollout_store import prompt_digest
from ft_pipeline.recipe import Finetune
from ft_pipeline.store.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyBatch:
    """A rollout as tensors. S completions, T tokens of the longest; N completion tokens in a row."""

    rows: Batch
    lengths: list[int]
    prompts: int
    mask: torch.Tensor
    """[S, T] 1 for a token that counts: completions of a prompt that is skipped have none."""
    sampled: torch.Tensor
    """[S, T] log-probabilities when sampled."""
    advantages: torch.Tensor
    """[S]"""
    reference: torch.Tensor | None
    """[S, T] log-probabilities of the reference."""
    measured: torch.Tensor | None
    """Scalar: minus the sum of the rewards of greedy completions, in evaluation."""
    facts: dict[str, float] = field(default_factory=dict)
    """Means over the prompts of the rollout."""

    @property
    def tokens(self) -> int:
        """Real tokens of the training forward."""
        return self.rows.tokens


class Policy:
    """One of OBJECTIVES on completions of its own."""

    def __init__(self, section: Finetune, tools: PolicyTools) -> None:
        """Raises RecipeError for a section that lacks what the method needs."""
        self.section, self.tools = section, tools
        self.plan = tools.plan
        self.objective: Objective = OBJECTIVES[section.method]

    def items(self, shards: Artifact, split: str) -> Sequence[Ask]:
        """The prompts of a split. Raises RecipeError when one leaves no room for its completion."""
        asks = [ask_of(prompt) for prompt in read_prompts(shards, split)]
        longest = max((len(ask.ids) for ask in asks), default=0)
        if longest + self.plan.max_new_tokens > self.tools.reads_tokens:
            raise RecipeError(
                f"a prompt of {longest} tokens and max_new_tokens {self.plan.max_new_tokens} exceed the {self.tools.reads_tokens} "
                "that the base model reads",
                cure="a smaller finetune.reinforce.max_new_tokens, or encode.window_tokens that leaves room for it",
            )
        return asks

    def weight(self, _item: Ask) -> float:
        """A prompt counts 1: the loss is a mean over prompts, or the method's own mean over the tokens of the rollout."""
        return 1.0

    def batch(self, trainee: Trainee, items: Sequence[Ask]) -> PolicyBatch:
        """Samples, scores, and writes the rollout down. In eval mode: one greedy completion of each prompt."""
        if not trainee.model.training:
            return self._greedy(trainee, items)
        completions, scores = self._rollout(trainee, items)
        rows = batch_of_completions(trainee, completions)
        mask, sampled = self._padded(trainee, completions)
        reference = self._reference(trainee, rows, mask)
        totals = scores.totals
        if self.objective.kl_in_reward and self.plan.kl_weight and reference is not None:
            totals = totals - self.plan.kl_weight * ((sampled - reference) * mask).sum(dim=1).view_as(totals).cpu()
        advantages = self._advantages(trainee, items, totals)
        skipped = (
            worth.is_flat(totals) if self.resamples and self.objective.rewarded else torch.zeros(len(items)).bool()
        )
        self._write(items, completions, (scores, advantages))
        return PolicyBatch(
            rows=rows, lengths=[len(c.ids) for c in completions], prompts=len(items),
            mask=mask * (~skipped).repeat_interleave(self.plan.completions)[:, None].to(mask), sampled=sampled,
            advantages=advantages.flatten().to(mask), reference=reference, measured=None,
            facts=self._facts(completions, scores),
        )  # fmt: skip

    def loss(self, trainee: Trainee, batch: PolicyBatch) -> Loss:
        """The method's objective, summed over prompts."""
        if batch.measured is not None:
            return Loss(total=batch.measured)
        logits = self.tools.logits(trainee, batch.rows)
        logs = torch.log_softmax(logits, dim=-1)
        chosen = logs.gather(1, batch.rows.targets[:, None])[:, 0]
        total, facts = self._objective(_lines(chosen, batch.lengths), batch)
        if self.objective.teacher:
            pulled = self._pull(logs, batch)
            total = total + pulled * (self.plan.teacher_weight if self.objective.rewarded else 1.0)
            facts["teacher_kl"] = pulled
        facts |= {name: torch.tensor(value) for name, value in batch.facts.items()}
        facts["entropy"] = -(logs.detach().exp() * logs.detach()).sum(dim=1).mean()
        return Loss(total=total * batch.prompts, facts={n: v.detach() * batch.prompts for n, v in facts.items()})

    @property
    def clip(self) -> tuple[float, float]:
        """Below and above 1."""
        low, high = self.plan.clip_low, self.plan.clip_high
        return self.objective.clip_low if low is None else low, self.objective.clip_high if high is None else high

    @property
    def resamples(self) -> int:
        """How often a prompt without variance is sampled again."""
        return self.objective.resamples if self.plan.resamples is None else self.plan.resamples

    def sampling(self, *, greedy: bool = False) -> Sampling:
        """How completions are drawn."""
        return Sampling(
            count=1 if greedy else self.plan.completions, max_new_tokens=self.plan.max_new_tokens,
            stops=self.tools.stops, temperature=self.plan.temperature, greedy=greedy,
        )  # fmt: skip

    def _rollout(self, trainee: Trainee, items: Sequence[Ask]) -> tuple[list[Completion], Scores]:
        """Completions with their scores; prompts whose completions all have one reward are drawn again, a few times."""
        completions = sample(trainee, [item.prompt_ids for item in items], self.sampling())
        scores = self._scored(items, completions)
        for _ in range(self.resamples if self.objective.rewarded else 0):
            flat = [int(place) for place in worth.is_flat(scores.totals).nonzero()[:, 0]]
            if not flat:
                break
            again = [items[place] for place in flat]
            fresh = sample(trainee, [item.prompt_ids for item in again], self.sampling())
            completions = scores.take(completions, flat, (fresh, self._scored(again, fresh)))
        return completions, scores

    def _scored(self, items: Sequence[Ask], completions: Sequence[Completion]) -> Scores:
        last = self.plan.overlong_tokens
        last = round(self.objective.overlong_share * self.plan.max_new_tokens) if last is None else last
        return scored(self.tools, items, completions, last=last)

    def _advantages(self, trainee: Trainee, items: Sequence[Ask], totals: torch.Tensor) -> torch.Tensor:
        if self.objective.baseline == "none":
            return torch.zeros_like(totals)
        if self.objective.baseline == "above_greedy":
            greedy = sample(trainee, [item.prompt_ids for item in items], self.sampling(greedy=True))
            return worth.above_greedy(totals, self._scored(items, greedy).totals[:, 0])
        return getattr(worth, self.objective.baseline)(totals)

    def _objective(self, now: torch.Tensor, batch: PolicyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean loss of a rollout and what is told of it."""
        mask, objective = batch.mask, self.objective
        facts: dict[str, torch.Tensor] = {}
        total = (now * 0).sum()
        if objective.rewarded:
            logs = losses.log_ratios(now, batch.sampled, mask, ratio=objective.ratio)
            each = losses.clipped_loss(logs, batch.advantages, self.clip)
            keep = mask if each.shape == mask.shape else mask[:, :1]
            spread = each.expand_as(mask) if objective.count != "whole" else each * keep
            total = losses.counted(spread, mask, count=objective.count, longest=self.plan.max_new_tokens)
            held = losses.clipped_share(logs.detach(), batch.advantages, self.clip) * keep
            facts["clipped"] = held.sum() / keep.sum().clamp(min=1)
        if batch.reference is not None:
            apart = losses.divergence(now, batch.reference)
            facts["kl"] = (apart * mask).sum() / mask.sum().clamp(min=1)
            facts["kl_completion"] = (apart * mask).sum(dim=1).mean()
            if self.plan.kl_weight and not objective.kl_in_reward:
                count = objective.count
                total = total + self.plan.kl_weight * losses.counted(
                    apart, mask, count=count, longest=self.plan.max_new_tokens
                )
        return total, facts

    def _pull(self, logs: torch.Tensor, batch: PolicyBatch) -> torch.Tensor:
        """KL(student | teacher) over the whole vocabulary, mean over the completion tokens."""
        if self.tools.teacher is None:
            raise AssertionError("a method with a teacher was made without one")
        with torch.no_grad():
            taught = torch.log_softmax(self.tools.logits(self.tools.teacher, batch.rows), dim=-1)
        apart = _lines((logs.exp() * (logs - taught)).sum(dim=1), batch.lengths)
        return losses.counted(apart, batch.mask, count="token", longest=self.plan.max_new_tokens)

    def _reference(self, trainee: Trainee, rows: Batch, mask: torch.Tensor) -> torch.Tensor | None:
        if not self.objective.rewarded:
            return None
        with torch.no_grad(), trainee.precision(), self.tools.reference(trainee) as model:
            logs = torch.log_softmax(self.tools.logits(model, rows), dim=-1)
        chosen = logs.gather(1, rows.targets[:, None])[:, 0]
        return _lines(chosen, mask.sum(dim=1).int().tolist())

    def _padded(self, trainee: Trainee, completions: Sequence[Completion]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = [len(c.ids) for c in completions]
        flat = torch.tensor([p for c in completions for p in c.logprobs], device=trainee.device)
        return _lines(torch.ones_like(flat), lengths), _lines(flat, lengths)

    def _greedy(self, trainee: Trainee, items: Sequence[Ask]) -> PolicyBatch:
        """Evaluation: the rewards of greedy completions, or the divergence from the teacher on them."""
        completions = sample(trainee, [item.prompt_ids for item in items], self.sampling(greedy=True))
        mask, sampled = self._padded(trainee, completions)
        measured = None
        if self.objective.rewarded:
            measured = -scored(self.tools, items, completions, last=0).totals.nan_to_num(0.0).sum()
        return PolicyBatch(
            rows=batch_of_completions(trainee, completions), lengths=[len(c.ids) for c in completions], prompts=len(items),
            mask=mask, sampled=sampled, advantages=torch.zeros(len(completions)), reference=None, measured=measured,
        )  # fmt: skip

    def _facts(self, completions: Sequence[Completion], scores: Scores) -> dict[str, float]:
        count = len(completions)
        facts = {
            "length": sum(len(c.ids) for c in completions) / count,
            "unfinished": sum(not c.finished for c in completions) / count,
        }
        return {**facts, **scores.facts()} if self.objective.rewarded else facts

    def _write(
        self, items: Sequence[Ask], completions: Sequence[Completion], found: tuple[Scores, torch.Tensor]
    ) -> None:
        scores, advantages = found
        each = self.plan.completions
        rows = [
            {
                "row_id": items[n // each].row_ids[0],
                "prompt": prompt_digest(completion.prompt_ids),
                "completion": self.tools.text(completion.ids),
                **scores.row(n),
                "advantage": advantage,
                "tokens": len(completion.ids),
                "finished": completion.finished,
            }
            for n, (completion, advantage) in enumerate(zip(completions, advantages.flatten().tolist(), strict=True))
        ]
        self.tools.write(torch.initial_seed(), rows)


def method(section: Finetune, **given: Any) -> Policy:
    """Every method of OBJECTIVES. given: see tools.policy_tools."""
    return Policy(section, policy_tools(section, **given))


def _lines(flat: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """[N] as [S, T], zeros behind each line."""
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(list(lengths))), batch_first=True)
