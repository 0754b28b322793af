"""How a child process starts fast: optional packages that it never uses are made invisible before the heavy imports.

Measured 2026-11 on 2 loaded cores: a tokenizer without torch loads in 1.9 s instead of 14 s; a model without scikit-learn
(transformers imports it for one function of assisted decoding) in 10 s instead of 17 s.
"""

from __future__ import annotations

import sys

UNUSED_BY_A_MODEL = ("sklearn", "deepspeed", "tensorflow", "flax", "bitsandbytes", "kernels")
"""PEFT imports bitsandbytes when it is there, 3.4 CPU seconds; finetune/quantize.py finds it again. `kernels` downloads code."""
UNUSED_BY_A_TOKENIZER = (*UNUSED_BY_A_MODEL, "torch")


def hide(packages: tuple[str, ...]) -> None:
    """Makes `import package` fail in this process, which optional integrations read as `not installed`."""
    for name in packages:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
