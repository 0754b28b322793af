"""distill: a student learns what a teacher expects at each trained token, its k likeliest tokens and all others as one more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ft_pipeline.encode.artifact import CachedWindows, Window, cached_windows
from ft_pipeline.errors import IntegrityError, RecipeError
from ft_pipeline.finetune import attention
from ft_pipeline.finetune.batches import Batch, batch_of
from ft_pipeline.finetune.methods.method import Loss
from ft_pipeline.finetune.methods.pair_losses import log_complement
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.finetune.teacher import Expected, Taught, read_taught
from ft_pipeline.recipe import Distill, Finetune
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.workers.job import Placement

LARGEST_SUM = -1e-6
"""Of the log of the share of the kept tokens: above it the rest is 0 in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson(Window):
    """A window with what the teacher expects at its trained tokens."""

    tokens: np.ndarray
    logprobs: np.ndarray


class Lessons(Sequence[Lesson]):
    """Windows and expectations of a split, both mapped from files."""

    def __init__(self, windows: CachedWindows, taught: Taught | None) -> None:
        self._windows, self._taught = windows, taught

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        window = self._windows[int(place)]
        assert self._taught is not None
        tokens, logprobs = self._taught.of(int(place) % len(self))
        return Lesson(**{f.name: getattr(window, f.name) for f in fields(Window)}, tokens=tokens, logprobs=logprobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class LessonBatch:
    """Windows, and [N, k] of the teacher in the order of `rows.predict`."""

    rows: Batch
    expected: torch.Tensor
    logprobs: torch.Tensor
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """alpha x divergence + (1 - alpha) x NLL, by trained token."""

    section: Distill
    cache: Path
    teacher: Artifact
    """Its `teacher_logprobs`."""

    def items(self, shards: Artifact, split: str) -> Lessons:
        """The windows of a split. Raises IntegrityError when the teacher has read others."""
        windows, taught = cached_windows(shards, split, self.cache), read_taught(self.teacher, split)
        if len(windows) != (len(taught) if taught else 0):
            raise IntegrityError(
                f"{self.teacher.ref.path} has {len(taught) if taught else 0} {split} windows, the shards have {len(windows)}",
                cure="delete it from the store: it is computed again",
            )
        return Lessons(windows, taught)

    def weight(self, item: Lesson) -> float:
        """Trained tokens."""
        return item.trained_tokens

    def batch(self, trainee: Trainee, items: Sequence[Lesson]) -> LessonBatch:
        """See batches.batch_of."""
        rows = batch_of(items, flat=trainee.flat, device=trainee.device)
        tokens = torch.from_numpy(np.concatenate([i.tokens for i in items]).astype(np.int64))
        logprobs = torch.from_numpy(np.concatenate([i.logprobs for i in items]))
        return LessonBatch(
            rows=rows, expected=tokens.to(trainee.device), logprobs=logprobs.to(trainee.device), tokens=rows.tokens
        )

    def loss(self, trainee: Trainee, batch: LessonBatch) -> Loss:
        """Summed over the trained tokens; facts: divergence and nll in nats a token."""
        logits = logits_at(trainee.model, batch.rows).float()
        nll = cross_entropy(logits, batch.rows.targets, reduction="sum")
        student = (logits / self.section.temperature).log_softmax(-1).gather(1, batch.expected)
        whole = batch.expected.shape[1] == logits.shape[1]
        apart = divergence(batch.logprobs, student, beta=self.section.beta, whole=whole).sum()
        total = self.section.alpha * apart + (1 - self.section.alpha) * nll
        return Loss(total=total, facts={"divergence": apart.detach(), "nll": nll.detach()})


def method(section: Finetune, *, cache: Path, teacher: Artifact | None = None, **_given: Any) -> Distilled:
    """distill. Raises RecipeError without the section or the teacher's log-probabilities."""
    if section.distill is None or teacher is None:
        raise RecipeError("method distill has no distill section or no teacher log-probabilities")
    return Distilled(section=section.distill, cache=cache, teacher=teacher)


def divergence(teacher: torch.Tensor, student: torch.Tensor, *, beta: float, whole: bool = False) -> torch.Tensor:
    """[N] nats between distributions given by k log-probabilities each [N, k] of the same tokens; all others are one more token.

    beta 0: KL(teacher | student), 1: KL(student | teacher), between: the generalised Jensen-Shannon divergence (arXiv 2306.13649,
    equation 1). whole: the k tokens are the vocabulary, there are no others.
    """
    if not whole:
        teacher, student = _with_rest(teacher), _with_rest(student)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    share = torch.tensor(beta, dtype=student.dtype, device=student.device)
    mixed = torch.logaddexp(student + torch.log1p(-share), teacher + share.log())
    return share * _kl(teacher, mixed) + (1 - share) * _kl(student, mixed)


def logits_at(model: Any, rows: Batch) -> torch.Tensor:
    """[N, vocabulary] at `rows.predict`. On the flat road the head is asked about those places only."""
    inputs: dict[str, Any] = {
        "input_ids": rows.input_ids, "position_ids": rows.position_ids, "attention_mask": None, "use_cache": False,
    }  # fmt: skip
    if rows.segments is not None:
        return model(**inputs, segments=rows.segments, logits_to_keep=rows.predict).logits[0]
    return model(**inputs).logits.flatten(0, 1).index_select(0, rows.predict)


def load_teacher(folder: Path, dtype: str, placement: Placement) -> Trainee:
    """A frozen model without dropout, on the same road as a trained one."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(placement.threads)
    torch.use_deterministic_algorithms(True)
    attention.register()
    flat = attention.fits(AutoConfig.from_pretrained(folder, local_files_only=True))
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=getattr(torch, dtype),
        attn_implementation=attention.NAME if flat else "sdpa",
    )  # fmt: skip
    section: Any = None
    return Trainee(model.eval().requires_grad_(False).to(placement.device), section, placement.device, flat)


def expected(teacher: Trainee, window: Window, section: Mapping[str, Any]) -> Expected:
    """The likeliest tokens at each trained token of a window. section: top_k, temperature, vocabulary (tokens of the student)."""
    if not window.trained_tokens:
        return np.zeros((0, section["top_k"]), np.int32), np.zeros((0, section["top_k"]), np.float32)
    with torch.inference_mode():
        logits = logits_at(teacher.model, batch_of([window], flat=teacher.flat, device=teacher.device))
        logs = (logits[:, : section["vocabulary"]].float() / section["temperature"]).log_softmax(-1)
        values, tokens = logs.topk(min(section["top_k"], logs.shape[1]), dim=-1)
    return tokens.to(torch.int32).cpu().numpy(), values.cpu().numpy()


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[N] KL(one | other) of log-probabilities."""
    return (one.exp() * (one - other)).sum(-1)


def _with_rest(logs: torch.Tensor) -> torch.Tensor:
    """[N, k + 1]: the last is the share of all tokens that are not kept."""
    kept = logs.logsumexp(-1, keepdim=True).clamp(max=LARGEST_SUM)
    return torch.cat([logs, log_complement(kept)], -1)
