"""What a step cost besides its seconds: the wait for its rows, and on a known GPU the shares of its peak."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from ft_pipeline.finetune.flops import peak_of, step_flops, utilisation
from ft_pipeline.finetune.model import Trainee, work_of

BUSY_SECONDS = 1.0
"""NVML's own window is 1/6 s to 1 s: asking more often tells nothing new."""


class Meter:
    """Of one process. Micro-batches are told as they come; `facts` closes a step."""

    def __init__(self, trainee: Trainee, *, recomputed: float = 0.0) -> None:
        """`recomputed`: share of the layers' forward pass that is computed again."""
        self._peak = peak_of(torch.cuda.get_device_name(trainee.device)) if trainee.device.startswith("cuda") else None
        self._work = work_of(trainee) if self._peak else None
        self._again = recomputed
        self._busy, self._asked_at = busy_of(trainee.device), -math.inf
        self._lengths: list[int] = []
        self._predicted, self._waited, self._whole = 0, 0.0, True

    def saw(self, batch: Any, waited: float) -> None:
        """A micro-batch, after so many seconds of composing it or waiting for it."""
        self._waited += waited
        if self._work is None:
            return
        lengths, predict = getattr(batch, "lengths", None), getattr(batch, "predict", None)
        if not lengths or predict is None:
            self._whole = False
            return
        self._lengths += [n for line in lengths for n in line]
        self._predicted += len(predict)

    def facts(self, seconds: float) -> dict[str, float]:
        """wait_seconds, and mfu, hfu, mfu_6n where they can be told, of the step that ends now; gpu_busy once a second where NVML answers."""
        told = {"wait_seconds": round(self._waited, 5)}
        if self._busy is not None and time.monotonic() - self._asked_at >= BUSY_SECONDS:
            self._asked_at = time.monotonic()
            told["gpu_busy"] = self._busy()
        if self._work is not None and self._whole and self._lengths:
            flops = step_flops(self._work, self._lengths, predicted=self._predicted, recomputed=self._again)
            told |= utilisation(flops, seconds=seconds, peak=self._peak)
        self._lengths, self._predicted, self._waited, self._whole = [], 0, 0.0, True
        return told


def busy_of(device: str) -> Callable[[], float] | None:
    """Asks NVML for the share of the last moment in which a kernel ran on a GPU (no utilisation of its peak: that is mfu).

    None on a CPU, and where NVML does not answer: pynvml is not installed, or a container does not see the driver's library.
    """
    if not device.startswith("cuda"):
        return None

    def busy() -> float:
        return torch.cuda.utilization(device) / 100

    try:
        busy()
    except Exception:  # noqa: BLE001 - pynvml's errors have no class that is known here, and a meter stops nothing
        return None
    return busy
