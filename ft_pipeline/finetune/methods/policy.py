"""grpo, dr_grpo, dapo, gspo, bnpo, rloo, remax, ppo, on_policy_distill, kdrl: sampled from the policy itself.

A micro-batch is a rollout, drawn from the weights of a step and scored. With one update a rollout nothing of it outlives the step,
and the ratio of training to sampling probability differs from 1 only by dropout and the rounding of a KV cache. With more
updates it is kept for so many steps, and checkpoints hold it: either way a resumed run is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.encode.artifact import read_prompts
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.batches import Batch
from ft_pipeline.finetune.methods import advantages as worth
from ft_pipeline.finetune.methods import objectives as losses
from ft_pipeline.finetune.methods import ppo
from ft_pipeline.finetune.methods.experience import Cycle, PolicyBatch, lines, padded
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.methods.scoring import Scores, scored
from ft_pipeline.finetune.methods.tools import PolicyTools, policy_tools, tools_of_canary
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.policies import OBJECTIVES, Objective
from ft_pipeline.finetune.rollout import Ask, Completion, Sampling, ask_of, batch_of_completions, sample, still
from ft_pipeline.finetune.rollout_store import prompt_digest
from ft_pipeline.recipe import Finetune
from ft_pipeline.recipe_reinforce import Critic
from ft_pipeline.store.artifacts import Artifact


class Policy:
    """One of OBJECTIVES on completions of its own."""

    def __init__(self, section: Finetune, tools: PolicyTools) -> None:
        """Raises RecipeError for a section that lacks what the method needs."""
        self.section, self.tools = section, tools
        self.plan = tools.plan
        self.objective: Objective = OBJECTIVES[section.method]
        self.critic = (self.plan.critic or Critic()) if self.objective.baseline == "critic" else None
        micros_per_step = section.windows_per_step // section.windows_per_micro
        self.cycle = Cycle(updates=self.plan.updates_per_rollout, micros_per_step=micros_per_step)

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
        """The rollout of the micro-batch that torch is seeded for. In eval mode: one greedy completion of each prompt."""
        if not trainee.model.training:
            return self._greedy(trainee, items)
        if self.cycle.updates == 1:
            return self._made(trainee, items)
        return self.cycle.rollout(self.tools.micro(), lambda: self._made(trainee, items))

    def memory(self, step: int) -> dict[str, Any]:
        """What the step after so many finished ones needs besides weights: the rollouts of a cycle that is not over."""
        return self.cycle.memory(step)

    def recall(self, trainee: Trainee, *, step: int, memory: Mapping[str, Any]) -> None:
        """Goes on where `memory(step)` was taken."""
        self.tools.next_micro = step * self.cycle.micros_per_step
        self.cycle.recall(trainee, step=step, memory=memory)

    def loss(self, trainee: Trainee, batch: PolicyBatch) -> Loss:
        """The method's objective, summed over prompts."""
        if batch.measured is not None:
            return Loss(total=batch.measured)
        logits, values = self.tools.answers(trainee, batch.rows, values=self.critic is not None)
        logs = torch.log_softmax(logits, dim=-1)
        chosen = logs.gather(1, batch.rows.targets[:, None])[:, 0]
        total, facts = self._objective(lines(chosen, batch.lengths), batch)
        if self.critic is not None:
            learned, told = ppo.critic_loss(lines(values, batch.lengths), batch, self.critic)
            total, facts = total + learned, facts | told
            if self.critic.entropy_weight:
                spread = lines(losses.entropies(logs), batch.lengths)
                total = total - self.critic.entropy_weight * ppo.mean(spread, batch.mask)
        if self.objective.teacher:
            pulled = self._pull(logs, batch)
            total = total + pulled * (self.plan.teacher_weight if self.objective.rewarded else 1.0)
            facts["teacher_kl"] = pulled
        facts |= {name: torch.tensor(value) for name, value in batch.facts.items()}
        facts["entropy"] = losses.entropies(logs.detach()).mean()
        return Loss(total=total * batch.prompts, facts={n: v.detach() * batch.prompts for n, v in facts.items()})

    def canary(self, section: Finetune, base: Path) -> Policy:
        """This method for a tiny model of the same vocabulary: the same rewards, reference and teacher made of `base`, nothing written."""
        return Policy(section, tools_of_canary(self.tools, section, base))

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

    def _made(self, trainee: Trainee, items: Sequence[Ask]) -> PolicyBatch:
        """Samples, scores, and writes the rollout down."""
        completions, scores = self._rollout(trainee, items)
        rows = batch_of_completions(trainee, completions)
        mask, sampled = padded(completions, device=trainee.device)
        batch = PolicyBatch(
            rows=rows, lengths=[len(c.ids) for c in completions], prompts=len(items), mask=mask, sampled=sampled,
            advantages=torch.zeros(len(completions)), reference=self._reference(trainee, rows, mask),
            facts=self._facts(completions, scores),
        )  # fmt: skip
        worthy = self._judged if self.critic is not None else self._compared
        batch = worthy(trainee, items, (batch, scores))
        self._write(items, completions, (scores, batch))
        return batch

    def _compared(self, trainee: Trainee, items: Sequence[Ask], drawn: tuple[PolicyBatch, Scores]) -> PolicyBatch:
        """With an advantage for each completion, by what its siblings or a greedy one earned."""
        batch, scores = drawn
        totals, mask = scores.totals, batch.mask
        if self.objective.kl_in_reward and self.plan.kl_weight and batch.reference is not None:
            apart = ((batch.sampled - batch.reference) * mask).sum(dim=1)
            totals = totals - self.plan.kl_weight * apart.view_as(totals).cpu()
        advantages = self._advantages(trainee, items, totals)
        skips = self.resamples and self.objective.rewarded
        skipped = worth.is_flat(totals) if skips else torch.zeros(len(items)).bool()
        kept = (~skipped).repeat_interleave(self.plan.completions)[:, None].to(mask)
        return replace(batch, mask=mask * kept, advantages=advantages.flatten().to(mask))

    def _judged(self, trainee: Trainee, _items: Sequence[Ask], drawn: tuple[PolicyBatch, Scores]) -> PolicyBatch:
        """With an advantage for each token, by what the value head expected of it."""
        batch, scores = drawn
        assert self.critic is not None and batch.reference is not None
        with torch.no_grad(), trainee.precision(), still(trainee):
            _, flat = self.tools.answers(trainee, batch.rows, values=True)
        values, mask = lines(flat, batch.lengths), batch.mask
        costs = self.plan.kl_weight * (batch.sampled - batch.reference)
        found = ppo.judged(scores.totals.flatten().to(mask), costs, values, mask=mask, critic=self.critic)
        return replace(batch, mask=found.mask, advantages=found.advantages, values=values, returns=found.returns)

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
            facts["ratio_change"] = ((logs.detach().exp() - 1).abs() * keep).sum() / keep.sum().clamp(min=1)
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
        apart = lines((logs.exp() * (logs - taught)).sum(dim=1), batch.lengths)
        return losses.counted(apart, batch.mask, count="token", longest=self.plan.max_new_tokens)

    def _reference(self, trainee: Trainee, rows: Batch, mask: torch.Tensor) -> torch.Tensor | None:
        if not self.objective.rewarded:
            return None
        with torch.no_grad(), trainee.precision(), self.tools.reference(trainee) as model:
            logs = torch.log_softmax(self.tools.logits(model, rows), dim=-1)
        chosen = logs.gather(1, rows.targets[:, None])[:, 0]
        return lines(chosen, mask.sum(dim=1).int().tolist())

    def _greedy(self, trainee: Trainee, items: Sequence[Ask]) -> PolicyBatch:
        """Evaluation: the rewards of greedy completions, or the divergence from the teacher on them."""
        completions = sample(trainee, [item.prompt_ids for item in items], self.sampling(greedy=True))
        mask, sampled = padded(completions, device=trainee.device)
        measured = None
        if self.objective.rewarded:
            measured = -scored(self.tools, items, completions, last=0).totals.nan_to_num(0.0).sum()
        return PolicyBatch(
            rows=batch_of_completions(trainee, completions), lengths=[len(c.ids) for c in completions], prompts=len(items),
            mask=mask, sampled=sampled, advantages=torch.zeros(len(completions)), measured=measured,
        )  # fmt: skip

    def _facts(self, completions: Sequence[Completion], scores: Scores) -> dict[str, float]:
        count = len(completions)
        facts = {
            "length": sum(len(c.ids) for c in completions) / count,
            "unfinished": sum(not c.finished for c in completions) / count,
        }
        if not self.objective.rewarded:
            return facts
        facts |= scores.facts()
        if self.plan.completions == 1:
            del facts["flat_groups"]  # one completion is no group: it would always be flat
        return facts

    def _write(
        self, items: Sequence[Ask], completions: Sequence[Completion], found: tuple[Scores, PolicyBatch]
    ) -> None:
        scores, batch = found
        advantages = batch.advantages
        if advantages.ndim > 1:
            advantages = (advantages * batch.mask).sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)
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
        self.tools.write(rows)


def method(section: Finetune, **given: Any) -> Policy:
    """Every method of OBJECTIVES. given: see tools.policy_tools."""
    return Policy(section, policy_tools(section, **given))
