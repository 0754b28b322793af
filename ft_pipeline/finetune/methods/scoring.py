"""The rewards of completions by part, as the advantage functions take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ft_pipeline.finetune.methods.advantages import is_flat
from ft_pipeline.finetune.methods.objectives import overlong
from ft_pipeline.finetune.rollout import Completion

if TYPE_CHECKING:
    from ft_pipeline.finetune.methods.tools import PolicyTools


@dataclass
class Scores:
    """Rewards of P prompts with G completions each."""

    names: tuple[str, ...]
    weights: torch.Tensor
    """[F]"""
    parts: torch.Tensor
    """[P, G, F], NaN where a function could not score."""
    resampled: int = 0
    """Prompts that were drawn again."""

    @property
    def totals(self) -> torch.Tensor:
        """[P, G] weighed sums of what could be scored; NaN where nothing could."""
        sums = (self.parts * self.weights).nansum(dim=2)
        return torch.where(self.parts.isnan().all(dim=2), torch.nan, sums) if self.names else sums

    def take(
        self, completions: Sequence[Completion], places: Sequence[int], fresh: tuple[Sequence[Completion], Scores]
    ) -> list[Completion]:
        """Puts fresh completions and their scores in the place of some prompts'."""
        count, kept = self.parts.shape[1], list(completions)
        for number, place in enumerate(places):
            kept[place * count : (place + 1) * count] = fresh[0][number * count : (number + 1) * count]
            self.parts[place] = fresh[1].parts[number]
        self.resampled += len(places)
        return kept

    def facts(self) -> dict[str, float]:
        """Means over the prompts."""
        totals = self.totals
        means = (
            {f"reward_{n}": _mean(self.parts[:, :, k]) for k, n in enumerate(self.names)} if len(self.names) > 1 else {}
        )
        return {
            "reward": _mean(totals),
            **means,
            "flat_groups": float(is_flat(totals).float().mean()),
            "not_scored": float(totals.isnan().float().mean()),
            "resampled": self.resampled / len(totals),
        }

    def row(self, number: int) -> dict[str, Any]:
        """The columns of one completion: each part and the sum, None where it could not be scored."""
        prompt, place = divmod(number, self.parts.shape[1])
        values = {f"reward_{name}": float(v) for name, v in zip(self.names, self.parts[prompt, place], strict=True)}
        values["reward"] = float(self.totals[prompt, place])
        return {name: None if math.isnan(value) else value for name, value in values.items()}


def scored(tools: PolicyTools, items: Sequence[Any], completions: Sequence[Completion], *, last: int) -> Scores:
    """Every reward function on every completion. last: the tokens at the end of max_new_tokens that are punished, 0 for none."""
    count = len(completions) // len(items)
    asks = [item for item in items for _ in range(count)]
    texts = [tools.text(c.ids) for c in completions]
    columns = {
        "prompts": [tools.text(ask.prompt_ids) for ask in asks],
        "answer": [ask.answer for ask in asks],
        "prompt_ids": [ask.prompt_ids for ask in asks],
        "completion_ids": [c.ids for c in completions],
        "row_id": [ask.row_ids[0] for ask in asks],
    }
    names, weights = [*tools.names], [r.weight for r in tools.plan.rewards]
    parts = [score(texts, **columns) for score in tools.scores]
    if last:
        longest = tools.plan.max_new_tokens
        # a completion that was cut counts as longer than the longest
        lengths = [len(c.ids) if c.finished else longest + 1 for c in completions]
        parts.append([overlong(length, longest=longest, last=last) for length in lengths])
        names, weights = [*names, "overlong"], [*weights, 1.0]
    stacked = torch.tensor(parts, dtype=torch.float32).reshape(len(parts), len(items), count).permute(1, 2, 0)
    return Scores(tuple(names), torch.tensor(weights, dtype=torch.float32), stacked.contiguous())


def _mean(values: torch.Tensor) -> float:
    found = float(values.nanmean())
    return 0.0 if math.isnan(found) else found
