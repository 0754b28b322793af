"""kto: completions that are wanted become likelier, unwanted ones less likely, measured from where the model stands on wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.batches import Batch, batch_of, single_rows
from ft_pipeline.finetune.methods.compared import (
    Compared,
    ComparedBatch,
    ComparedRows,
    compared_rows,
    row_log_probabilities,
)
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.recipe import Finetune, Preference
from ft_pipeline.store.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledBatch:
    """Completions with gradient, and the mismatched ones that only measure."""

    own: ComparedBatch
    others: Batch | None
    """None for a loss without a KL."""
    other_counts: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Kto:
    """arXiv 2402.01306. A row counts 1 in the mean of a step. The KL is that of the micro-batch, as in TRL that of the device's batch."""

    section: Preference
    cache: Path
    reference: Artifact

    def items(self, shards: Artifact, split: str) -> ComparedRows:
        """Labelled rows, each with the completion of another prompt."""
        return compared_rows(shards, split, cache=self.cache, reference=self.reference)

    def weight(self, _item: Compared) -> float:
        """A row is a row."""
        return 1.0

    def batch(self, trainee: Trainee, items: Sequence[Compared]) -> LabelledBatch:
        """Two forward passes: only the first one needs a gradient."""
        rows = [single_rows(item) for item in items]
        own, others = [pair[0] for pair in rows], [pair[1] for pair in rows]
        flat, device = trainee.flat, trainee.device
        reference = torch.tensor([i.reference for i in items], dtype=torch.float32, device=device)
        first = batch_of(own, flat=flat, device=device)
        second = batch_of(others, flat=flat, device=device) if self.has_kl else None
        return LabelledBatch(
            own=ComparedBatch(
                rows=first, counts=tuple(row.trained_tokens for row in own), reference=reference,
                labels=torch.tensor([i.label for i in items], device=device), tokens=first.tokens,
            ),
            others=second, other_counts=tuple(row.trained_tokens for row in others),
            tokens=first.tokens + (second.tokens if second else 0),
        )  # fmt: skip

    @property
    def has_kl(self) -> bool:
        """False for apo_zero_unpaired, which measures from the reference itself."""
        return self.section.loss != "apo_zero_unpaired"

    def loss(self, trainee: Trainee, batch: LabelledBatch) -> Loss:
        """Summed, weighted losses. Facts: `margin` is the reward of wanted rows and minus that of unwanted ones, by row."""
        own = batch.own
        assert own.reference is not None
        kl = self._kl(trainee.model, batch)
        logps = row_log_probabilities(trainee.model, own.rows, own.counts)
        ratios = logps - own.reference[:, 0]
        losses = label_losses(ratios, own.labels, (kl, self.section))
        rewards = self.section.beta * ratios.detach()
        signed = torch.where(own.labels, rewards, -rewards)
        facts = {
            "kl": kl * len(ratios),
            "wanted": own.labels.float().sum(),
            "margin": signed.sum(),
            "accuracy": (signed > 0).float().sum(),
            "reward_wanted": rewards[own.labels].sum(),
            "reward_unwanted": rewards[~own.labels].sum(),
            "logp": logps.detach().sum(),
        }
        return Loss(total=losses.sum(), facts=facts)

    def _kl(self, model: Any, batch: LabelledBatch) -> torch.Tensor:
        """Mean log-ratio of completions behind wrong prompts, at least 0: how far the model has moved from the reference at all."""
        if batch.others is None or batch.own.reference is None:
            return torch.zeros((), device=batch.own.labels.device)
        with torch.no_grad():
            logps = row_log_probabilities(model, batch.others, batch.other_counts)
        return (logps - batch.own.reference[:, 1]).mean().clamp(min=0)


def label_losses(ratios: torch.Tensor, labels: torch.Tensor, terms: tuple[torch.Tensor, Preference]) -> torch.Tensor:
    """[n] weighted losses of log-ratios to the reference; terms: the KL (0 for apo_zero_unpaired) and the section."""
    kl, section = terms
    value = section.beta * (ratios - kl)
    wanted = section.desirable_weight * (1 - torch.sigmoid(value))
    return torch.where(labels, wanted, section.undesirable_weight * (1 - torch.sigmoid(-value)))


def method(section: Finetune, *, cache: Path, reference: Artifact | None = None, **_given: Any) -> Kto:
    """kto. Raises RecipeError without the section or the reference."""
    if section.preference is None or reference is None:
        raise RecipeError(f"method {section.method} has no preference section or no reference log-probabilities")
    return Kto(
        section=replace(section.preference, loss=section.preference.loss or "kto"), cache=cache, reference=reference
    )
