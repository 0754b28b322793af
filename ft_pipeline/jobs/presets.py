"""What a request leaves to the platform: rates, windows and batches by method and size of the base. Written into the recipe, never guessed later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ft_pipeline.jobs.offer import Size

Method = Literal["lora", "qlora", "sft", "dpo", "cpt", "grpo"]
"""As the specification names them; `grpo` is OpenAI's `reinforcement`."""
RATES: Mapping[Method, float] = {"lora": 2e-4, "qlora": 2e-4, "sft": 2e-5, "dpo": 5e-6, "cpt": 1e-4, "grpo": 1e-5}
"""Of models from 1 B parameters: those of `ft-pipeline advise` (planning/advice_recipe.py)."""
BEARS: Mapping[Size, float] = {"usual": 1.0, "small": 2.5, "tiny": 12.5}
"""Smaller models bear, and need, higher rates: 5e-4 at 135 M parameters, 2.5e-3 at the demo's 0.9 M (measured there)."""
RANKS: Mapping[Method, int] = {"lora": 16, "qlora": 16, "dpo": 16, "cpt": 256, "grpo": 16}
TINY_RANK = 16
"""Of the demo's base, whose layers are 128 wide."""
HOLDOUT_ROWS = 200
"""What the gate wants at least (gate/policies)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How rows become steps."""

    window_tokens: int
    windows_per_step: int
    most_per_micro: int
    """Windows in one forward pass."""
    dtype: Literal["float32", "bfloat16"]
    answer_tokens: int
    """New tokens when the gate asks the holdout."""


SHAPES: Mapping[Size, Shape] = {
    "tiny": Shape(window_tokens=256, windows_per_step=8, most_per_micro=8, dtype="float32", answer_tokens=16),
    "small": Shape(window_tokens=512, windows_per_step=8, most_per_micro=2, dtype="float32", answer_tokens=128),
    "usual": Shape(window_tokens=2048, windows_per_step=16, most_per_micro=1, dtype="bfloat16", answer_tokens=128),
}


def learning_rate(method: Method, size: Size, multiplier: float) -> float:
    """The preset times the request's multiplier."""
    return float(f"{RATES[method] * BEARS[size] * multiplier:.6g}")


def epochs(method: Method, rows: int | None) -> int:
    """One above 10,000 rows, and one for preferences, rewards and text: a second over-optimises."""
    if method in ("dpo", "grpo", "cpt") or (rows or 0) > 10_000:
        return 1
    return 2 if (rows or 0) >= 1_000 else 3


def rank(method: Method, size: Size) -> int:
    """Of the adapter."""
    return TINY_RANK if size == "tiny" else RANKS[method]


def holdout_share(method: Method, rows: int | None) -> float:
    """So that 200 rows or more decide the gate, 30% at most; text has no right answer to hold out."""
    if method == "cpt":
        return 0.0
    return 0.1 if rows is None else min(0.3, max(0.02, round(1.2 * HOLDOUT_ROWS / max(rows, 1), 3)))


def validation_share(rows: int | None) -> float:
    """For the loss curve."""
    return 0.02 if (rows or 0) >= 5_000 else 0.05


def windows_per_step(method: Method, size: Size, *, rows: int | None, tokens: int | None) -> int:
    """The preset; of a small file as few windows or pairs as leave an epoch four steps."""
    shape = SHAPES[size]
    windows = rows if method in ("dpo", "grpo") else None if tokens is None else tokens // shape.window_tokens
    return shape.windows_per_step if windows is None else max(1, min(shape.windows_per_step, windows // 5))


def per_micro(windows_per_step: int, size: Size) -> int:
    """The largest divisor of a step that fits one forward pass."""
    most = min(SHAPES[size].most_per_micro, windows_per_step)
    return next(n for n in range(most, 0, -1) if windows_per_step % n == 0)
