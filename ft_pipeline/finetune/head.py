"""The head of a language model that gives losses instead of logits, some tokens at a time: [N, vocabulary] is never there.

Plain cross-entropy takes 14 bytes per logit (design note finetune, memory planner): 7 GiB for 4,096 tokens of a 128,256-token vocabulary.
The losses are made inside the head's own forward, so that what wraps a model (FSDP, ZeRO) gathers the head's weight as for logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 << 20
"""Of float32 logits that are there at once."""
PROBE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Which tokens the head is asked about."""

    predict: torch.Tensor
    """[N] places in the flattened batch."""
    targets: torch.Tensor
    """[N] the token that follows each."""
    summed: bool
    """One number for all, else [N]."""


class LossHead(torch.nn.Linear):
    """A head without a bias. Inside `asked`, its output is negative log-likelihoods in nats; else logits, as ever."""

    question: Question | None = None

    @contextmanager
    def asked(self, question: Question) -> Iterator[None]:
        """The model's next forward pass answers the question where its logits would be."""
        self.question = question
        try:
            yield
        finally:
            self.question = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name that torch gave it
        """Logits of the shape that nn.Linear gives, or losses."""
        if (asked := self.question) is None:
            return super().forward(input)
        hidden, weight = input.flatten(0, -2).index_select(0, asked.predict), self.weight
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        with torch.autocast(kind, enabled=False):
            answer = summed_nll if asked.summed else token_nll
            return answer(hidden, weight, asked.targets)


def loss_head(model: Any) -> LossHead | None:
    """The LossHead of a model, None when it has another head."""
    head = model.get_output_embeddings()
    return head if isinstance(head, LossHead) else None


def attach(model: Any) -> bool:
    """Gives a model a LossHead over its own weight.

    False when the head is of another kind, or the model does something to logits after the head (soft cap, scale): tried out on four
    tokens, because no config tells it for every architecture.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return False
    made = LossHead(head.in_features, head.out_features, bias=False, device="meta")
    made.weight = head.weight
    made.train(head.training)
    model.set_output_embeddings(made)
    if _passes_through(model, made):
        return True
    model.set_output_embeddings(head)
    return False


def _passes_through(model: Any, head: LossHead) -> bool:
    """True when what the head gives is what the model gives as logits: told by numbers that no cap or scale leaves as they are."""
    from ft_pipeline.finetune.attention import plan_segments

    ids = torch.arange(PROBE, device=head.weight.device)
    given = (
        torch.linspace(-100, 100, PROBE * head.out_features, device=ids.device).view(1, PROBE, -1).to(head.weight.dtype)
    )
    hook = head.register_forward_hook(lambda *_: given)
    training = model.training
    try:
        with torch.no_grad():
            segments = plan_segments([PROBE], device=str(ids.device))
            model.eval()
            made = model(input_ids=ids[None], position_ids=ids[None], use_cache=False, segments=segments).logits
    finally:
        hook.remove()
        model.train(training)
    return torch.equal(made, given)


def token_nll(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[N] losses for hidden [N, H], weight [V, H], targets [N], with gradient; more than a chunk of logits is made anew in the backward pass."""
    if len(hidden) <= _rows(weight):
        return _plain(hidden, weight, targets)
    sizes = zip(hidden.split(_rows(weight)), targets.split(_rows(weight)), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_plain(h, weight, t) for h, t in sizes])
    parts = [checkpoint(_plain, h, weight, t, use_reentrant=False, preserve_rng_state=False) for h, t in sizes]
    return torch.cat(parts)


def summed_nll(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum of the same losses. Its gradient is made in the forward pass, while the logits are there: nothing is computed twice."""
    return _Summed.apply(hidden, weight, targets)


def _plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(linear(hidden, weight).float(), targets, reduction="none")


def _rows(weight: torch.Tensor) -> int:
    return max(1, CHUNK_BYTES // (4 * weight.shape[0]))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        hidden, weight, targets = tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        gradient = torch.empty_like(hidden) if for_hidden else None
        # float32: a sum over chunks in bfloat16 would round once a chunk
        weights = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        losses = []
        size = _rows(weight)
        for start in range(0, len(hidden), size):
            part, wanted = hidden[start : start + size], targets[start : start + size, None]
            logs = torch.log_softmax(linear(part, weight), -1, dtype=torch.float32)
            chosen = logs.gather(1, wanted)
            losses.append(-chosen[:, 0])
            if gradient is None and weights is None:
                continue
            # of the logits: softmax, minus 1 at the target
            slope = logs.exp_().scatter_(1, wanted, chosen.exp() - 1).to(hidden.dtype)
            if gradient is not None:
                torch.mm(slope, weight, out=gradient[start : start + size])
            if weights is not None:
                weights += slope.t() @ part
        ctx.save_for_backward(gradient, weights)
        ctx.dtype = weight.dtype
        return torch.cat(losses).sum() if losses else hidden.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        (factor,) = gradients
        hidden, weights = ctx.saved_tensors
        return (
            None if hidden is None else hidden * factor,
            None if weights is None else (weights * factor).to(ctx.dtype),
            None,
        )
