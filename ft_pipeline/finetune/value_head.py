"""The value head of ppo: one number for each token, what is still to be earned behind it, from the policy's last hidden states.

A linear layer of width + 1 numbers beside the language model's head, in float32. It shares every layer of the policy, whose
weights its loss moves too, and is saved in checkpoints under names of its own; it is no part of what is published. It begins as
zeros: the first advantages are the rewards themselves, and nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

NAME = "value_head"
PREFIX = f"{NAME}."


def add_value_head(model: Any) -> None:
    """In place, behind the adapter: PEFT would take it for a layer to adapt."""
    head = torch.nn.utils.skip_init(torch.nn.Linear, model.get_output_embeddings().weight.shape[1], 1)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    model.add_module(NAME, head)


def value_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The head's weights under the names that a checkpoint has."""
    return {f"{PREFIX}{name}": tensor for name, tensor in getattr(model, NAME).state_dict().items()}


def load_value_head(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts back what `value_tensors` gave."""
    getattr(model, NAME).load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})


@contextmanager
def heard(model: Any) -> Iterator[list[torch.Tensor]]:
    """What goes into the language model's head meanwhile: the last hidden states, of a forward pass each."""
    states: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    try:
        yield states
    finally:
        hook.remove()


def values_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """[N] in float32, of hidden states [N, width]. Not in bfloat16: a value is a sum of thousands of products."""
    with torch.autocast(hidden.device.type, enabled=False):
        return getattr(model, NAME)(hidden.float())[:, 0]
