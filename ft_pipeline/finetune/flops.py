"""Floating-point operations of a training step, and the shares of a GPU's peak that they make. No torch.

MFU counts what the method needs, HFU also what is computed twice (gradient checkpointing). Both are aware of LoRA: a frozen weight
has no gradient of its own, 4 operations a token and weight instead of 6. `mfu_6n` counts 6 for every weight, as many reports do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PEAKS: Mapping[str, float] = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.5e12, "H200": 989.5e12, "A100": 312e12, "L40S": 362e12,
    "A10G": 70e12, "L4": 121e12, "B200": 2250e12,
}  # fmt: skip
"""Dense BF16 FLOP/s by a part of the device's name, data sheets; the first that fits, so the more exact name stands first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What each token of a decoder is multiplied with."""

    matmul: int
    """Weights of all projections, head included, embedding excluded."""
    head: int
    layers: int
    width: int
    """Of the queries: heads x head_dim."""
    lora: int = 0
    """Trained weights of the adapters; 0 trains every weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Of one step, over all ranks."""

    model: float
    hardware: float
    """With what is computed twice."""
    six_n: float
    """6 operations for every weight and real token, no attention."""


def step_flops(work: Work, lengths: Iterable[int], *, predicted: int | None = None, recomputed: float = 0.0) -> Flops:
    """Operations of one optimizer step over rows of these lengths, padding excluded.

    `predicted`: tokens that the head is asked about, all when None. `recomputed`: share of the layers' forward pass that is
    computed again (1 with full checkpointing). Attention is causal: half of the square of each row.
    """
    rows = list(lengths)
    tokens, squares = sum(rows), sum(n * n for n in rows)
    asked = tokens if predicted is None else predicted
    weights = (work.matmul - work.head) * tokens + work.head * asked
    scores = work.layers * work.width * squares
    model = (4 * weights + 6 * work.lora * tokens if work.lora else 6 * weights) + 6 * scores
    again = recomputed * (2 * (work.matmul - work.head + work.lora) * tokens + 2 * scores)
    return Flops(model=model, hardware=model + again, six_n=6 * work.matmul * tokens)


def peak_of(device: str) -> float | None:
    """FLOP/s of a GPU by its name (`NVIDIA H100 80GB HBM3`), None for one that is not in the table, and for a CPU."""
    return next((peak for name, peak in PEAKS.items() if all(word in device for word in name.split())), None)


def utilisation(flops: Flops, *, seconds: float, peak: float | None, devices: int = 1) -> dict[str, float]:
    """mfu, hfu and mfu_6n, shares of 1; empty without a peak: a CPU has none that says anything."""
    if not peak:
        return {}
    whole = seconds * peak * devices
    shares = {"mfu": flops.model / whole, "hfu": flops.hardware / whole, "mfu_6n": flops.six_n / whole}
    return {name: round(share, 4) for name, share in shares.items()}
