"""Refuses a run without an effect: weights that are not finite, a LoRA of zeros, a model that answers as its base does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ft_pipeline.errors import TrainingFailed
from ft_pipeline.finetune.methods.method import Method
from ft_pipeline.finetune.model import Trainee

TOKENS_SEEN = 64
"""Last hidden states of the probe that are compared, and its loss."""
CURE = "look at losses.jsonl: the learning rate is too small for these weights, or nothing was trained"


@dataclass(frozen=True, slots=True)
class Probe:
    """What the base model makes of one item, before the first step."""

    method: Method
    items: Sequence[Any]
    answer: str

    @classmethod
    def of(cls, trainee: Trainee, method: Method, items: Sequence[Any]) -> Probe:
        """Taken of the model as loaded, before a checkpoint is put into it."""
        chosen = items[:1]
        return cls(method, chosen, _answer(trainee, method, chosen))


def refuse_no_effect(trainee: Trainee, tensors: Mapping[str, torch.Tensor], probe: Probe) -> None:
    """Raises TrainingFailed when the trained model is worthless or is the base model. `tensors`: the trained ones, whole."""
    if broken := sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())):
        raise TrainingFailed(
            f"{len(broken)} trained tensors hold values that are not finite, {broken[0]} among them",
            why="The last step broke them; nothing was published.",
            cure="a lower finetune.learning_rate",
        )
    seconds = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    if seconds and not any(bool(tensor.any()) for tensor in seconds):
        raise TrainingFailed(
            "the adapter changes nothing: every lora_B is zero", why="Serving would not notice.", cure=CURE
        )
    if _answer(trainee, probe.method, probe.items) == probe.answer:
        raise TrainingFailed(
            "the trained model answers a probe row exactly as its base model does",
            why="It would be served and gated as if it had been trained.",
            cure=CURE,
        )


def _answer(trainee: Trainee, method: Method, items: Sequence[Any]) -> str:
    """Digest of the loss of an item and of what its first tokens give the head."""
    digest = hashlib.sha256()
    training = trainee.model.training
    trainee.model.eval()
    with torch.no_grad(), trainee.precision(), _heard(trainee.model, digest):
        torch.manual_seed(0)
        total = method.loss(trainee, method.batch(trainee, items)).total
    trainee.model.train(training)
    digest.update(_bytes(total))
    return digest.hexdigest()


@contextmanager
def _heard(model: Any, digest: Any) -> Iterator[None]:
    """Hashes what goes into the head: a head that gives losses instead of logits has the same input."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(
        lambda _, inputs: digest.update(_bytes(inputs[0].flatten(0, -2)[:TOKENS_SEEN]))
    )
    try:
        yield
    finally:
        hook.remove()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()
