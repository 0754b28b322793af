"""QLoRA's base (arXiv 2305.14314): projections in NF4, blocks of 64, their scales quantised again; embedding, norms and head stay.

Also on CPU, where bitsandbytes 0.50.2 has two traps on a processor with AVX512-BF16: in eval mode it repacks the weights for
inference, after which training goes on without a gradient through them; and at import it asks the `kernels` package, if there is one,
to download code. Both are kept out here.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch

FREE_OF_BNB = ("kernels",)


def quantize_projections(model: Any, *, device: str, dtype: torch.dtype) -> int:
    """Puts every linear layer but the head into NF4 on the device; how many. `dtype`: in which they compute."""
    head = model.get_output_embeddings()
    found = [(name, m) for name, m in model.named_modules() if type(m) is torch.nn.Linear and m is not head]
    kind = linear4bit()
    for name, plain in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _quantized(kind, plain, device=device, dtype=dtype))
    # PEFT asks this before it makes an adapter for four bits
    model.is_loaded_in_4bit = bool(found)
    return len(found)


def linear4bit() -> Any:
    """bitsandbytes' layer, imported without its download, and where it was hidden (workers/startup.py). Before PEFT is imported."""
    if sys.modules.get("bitsandbytes", sys) is None:
        del sys.modules["bitsandbytes"]
    hidden = [name for name in FREE_OF_BNB if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from bitsandbytes.nn import Linear4bit
    finally:
        logger.setLevel(level)
        for name in hidden:
            sys.modules.pop(name, None)
    return Linear4bit


def _quantized(kind: Any, plain: torch.nn.Linear, *, device: str, dtype: torch.dtype) -> Any:
    made = kind(
        plain.in_features, plain.out_features, bias=plain.bias is not None, compute_dtype=dtype,
        compress_statistics=True, quant_type="nf4", device="meta",
    )  # fmt: skip
    fresh = made.weight
    made.weight = type(fresh)(plain.weight.data, requires_grad=False, quant_type="nf4", module=made).to(device)
    if plain.bias is not None:
        made.bias = torch.nn.Parameter(plain.bias.data.to(device), requires_grad=False)
    made.support_avx512bf16_for_cpu = False
    return made.train(plain.training)
