"""What a step cost besides its seconds: the wait for its rows, and on a known GPU the shares of its peak."""

from __future__ import annotations

from typing import Any

import torch

from ft_pipeline.finetune.flops import peak_of, step_flops, utilisation
from ft_pipeline.finetune.model import Trainee, work_of


class Meter:
    """Of one process. Micro-batches are told as they come; `facts` closes a step."""

    def __init__(self, trainee: Trainee, *, recomputed: float = 0.0) -> None:
        """`recomputed`: share of the layers' forward pass that is computed again."""
        self._peak = peak_of(torch.cuda.get_device_name(trainee.device)) if trainee.device.startswith("cuda") else None
        self._work = work_of(trainee) if self._peak else None
        self._again = recomputed
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
        """wait_seconds, and mfu, hfu, mfu_6n where they can be told, of the step that ends now."""
        told = {"wait_seconds": round(self._waited, 5)}
        if self._work is not None and self._whole and self._lengths:
            flops = step_flops(self._work, self._lengths, predicted=self._predicted, recomputed=self._again)
            told |= utilisation(flops, seconds=seconds, peak=self._peak)
        self._lengths, self._predicted, self._waited, self._whole = [], 0, 0.0, True
        return told
