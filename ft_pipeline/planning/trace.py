"""What the real model would allocate in one training step, traced with fake tensors: no weights, no GPU, seconds for 8 B.

Every operation runs on shapes alone (FakeTensorMode); a dispatch mode counts the storages that are alive. It is the check of the
formulas in memory.py, and as blind as they are to what an allocator wastes and a kernel takes as workspace.
"""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ft_pipeline.finetune import attention
from ft_pipeline.finetune.head import LossHead, Question, loss_head
from ft_pipeline.finetune.recompute import recompute
from ft_pipeline.finetune.sharding import layers_of
from ft_pipeline.planning.memory import Layout
from ft_pipeline.planning.shapes import Shape


class Storages(TorchDispatchMode):
    """Counts the bytes of living storages, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: PLR0917 - torch calls it
        """Runs the operation and counts what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return made

    def add(self, tensor: torch.Tensor) -> None:
        """Counts the storage of a tensor once, until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """Bytes of one training step."""

    states: int
    """Weights and optimizer states, before the forward pass."""
    forward: int
    """What the forward pass left alive for the backward one, logits and loss included."""
    peak: int
    """The most at any moment, states included."""


def trace(shape: Shape, layout: Layout, *, windows: int, window_tokens: int) -> Traced:
    """One training step of a Llama of this shape in one process, as the loop runs it: flat rows, the head on trained tokens only."""
    attention.register()
    with torch.device("meta"):
        model = build(shape, layout)
    batch = inputs_of(layout, windows, window_tokens)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _made_fake(model)
        with Storages() as counted:
            return _stepped(model, layout, counted, batch=batch)


def _stepped(model: Any, layout: Layout, counted: Storages, *, batch: Any) -> Traced:
    for tensor in (*model.parameters(), *model.buffers()):
        counted.add(tensor)
    optimizer = _with_states([p for p in model.parameters() if p.requires_grad])
    states = counted.peak = counted.live
    cast = torch.autocast("cpu", torch.bfloat16) if layout.precision == "autocast" else contextlib.nullcontext()
    with cast:
        loss = loss_of(model, batch)
    forward = counted.live - states
    loss.backward()
    del optimizer
    return Traced(states=states, forward=forward, peak=counted.peak)


def _with_states(trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam as it is from the second step on."""
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        optimizer.state[parameter] = {n: torch.zeros_like(parameter) for n in ("exp_avg", "exp_avg_sq")}
    return optimizer


def _made_fake(model: torch.nn.Module) -> None:
    """Fake CPU tensors in place of meta ones, tied ones once. PEFT cannot build on fake ones: it swaps tensors while it does."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for owned in (module._parameters, module._buffers):
            for name, old in owned.items():
                if old is not None:
                    owned[name] = made.setdefault(id(old), _fake(old))  # type: ignore[assignment]


def _fake(old: torch.Tensor) -> torch.Tensor:
    new = torch.empty_like(old, device="cpu")
    return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new


def inputs_of(layout: Layout, windows: int, window_tokens: int) -> tuple[dict[str, Any], torch.Tensor]:
    """(inputs of the model, tokens that the head is asked about): a row a window, laid flat as finetune/batches.py does."""
    tokens = windows * window_tokens
    inputs = {
        "input_ids": torch.zeros((1, tokens), dtype=torch.long),
        "position_ids": torch.arange(window_tokens).repeat(windows)[None],
        "segments": attention.plan_segments([window_tokens] * windows),
    }
    return inputs, torch.arange(round(tokens * layout.trained_share))


def loss_of(model: Any, batch: tuple[Any, torch.Tensor]) -> torch.Tensor:
    """As finetune/methods/causal.py computes it."""
    inputs, predict = batch
    targets = torch.zeros(len(predict), dtype=torch.long)
    inputs = {**inputs, "attention_mask": None, "use_cache": False}
    if found := loss_head(model):
        with found.asked(Question(predict=predict, targets=targets, summed=True)):
            return model(**inputs).logits
    logits = model(**inputs, logits_to_keep=predict).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").sum()


def build(shape: Shape, layout: Layout) -> Any:
    """A Llama of this shape with our attention and head, on the default device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied, max_position_embeddings=131072,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    config._attn_implementation = attention.NAME
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if layout.precision == "bfloat16" else torch.float32)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    if layout.head == "chunked":
        head = LossHead(shape.hidden, shape.vocabulary, bias=False, device="meta")
        head.weight = model.lm_head.weight
        model.set_output_embeddings(head)
    if layout.lora is not None:
        model = _with_lora(model, layout)
    recompute(layers_of(model), layout.checkpointing)
    return model.train()


def _with_lora(model: Any, layout: Layout) -> Any:
    from peft import LoraConfig, get_peft_model

    assert layout.lora is not None
    targets = "all-linear" if layout.lora.targets == "all-linear" else list(layout.lora.targets)
    config = LoraConfig(r=layout.lora.rank, lora_alpha=layout.lora.alpha, lora_dropout=layout.lora.dropout, target_modules=targets, task_type="CAUSAL_LM")  # fmt: skip
    return get_peft_model(model, config)
