"""A child process that trains two steps of a random model on this CPU and prints by how many bytes its memory rose.

`python -m ft_pipeline_tests.planner_measure '{"shape": {...}, "layout": {...}, "windows": 2, "window_tokens": 512}'`
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.finetune import attention
from ft_pipeline.planning.memory import Layout
from ft_pipeline.planning.shapes import Shape
from ft_pipeline.planning.trace import build, inputs_of, loss_of
from ft_pipeline.recipe import Lora


def measured(asked: dict[str, Any]) -> int:
    """Highest resident size of two steps less that before the model was made, bytes."""
    torch.set_num_threads(1)
    shape = Shape(**asked["shape"])
    lora = asked["layout"].pop("lora")
    layout = Layout(**asked["layout"], lora=Lora(**lora) if lora else None)
    attention.register()
    _steps(Shape(hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, inner=64, vocabulary=64), layout, (1, 32))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    _steps(shape, layout, (asked["windows"], asked["window_tokens"]))
    return _status("VmHWM") - before


def _steps(shape: Shape, layout: Layout, size: tuple[int, int]) -> None:
    """Two, because Adam has its states from the second on."""
    model = build(shape, layout)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    for _ in range(2):
        cast = torch.autocast("cpu", torch.bfloat16) if layout.precision == "autocast" else contextlib.nullcontext()
        with cast:
            loss = loss_of(model, inputs_of(layout, *size))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(measured(json.loads(sys.argv[1])))
