"""Writes the figures of docs/planner.md anew: `python -m ft_pipeline_tests.planner_table`. About 15 minutes on two busy cores.

What the planner says beside a fake-tensor trace of the real model, a measured step on this CPU, and published figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ft_pipeline.planning.memory import GIB, Layout, Memory, memory, states
from ft_pipeline.planning.shapes import PUBLIC, Shape
from ft_pipeline.recipe import Lora

PAGE = Path(__file__).parents[1] / "docs" / "planner.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
SMALL = Shape(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, inner=1024, vocabulary=8000)
LARGER = Shape(hidden=768, layers=12, heads=12, kv_heads=4, head_dim=64, inner=2048, vocabulary=32000)
LORA, QV = Lora(rank=16, alpha=32), Lora(rank=8, alpha=16, targets=("q_proj", "v_proj"))
STEADY_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc raises its threshold as large blocks are freed, and keeps from then on what it has; fixed, memory goes back at once."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the tables."""

    name: str
    shape: Shape
    layout: Layout
    windows: int
    window_tokens: int

    @property
    def plan(self) -> Memory:
        """What the formulas say."""
        return memory(self.shape, self.layout, tokens=self.windows * self.window_tokens)

    def traced(self) -> float:
        """Peak of a fake-tensor trace, bytes."""
        from ft_pipeline.planning.trace import trace

        return trace(self.shape, self.layout, windows=self.windows, window_tokens=self.window_tokens).peak

    def measured(self, **environment: str) -> float:
        """Rise of a child's resident size, bytes."""
        asked = json.dumps({"shape": asdict(self.shape), "layout": asdict(self.layout), "windows": self.windows, "window_tokens": self.window_tokens})  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-m", "ft_pipeline_tests.planner_measure", asked],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return float(ended.stdout.split()[-1])


def layouts(share: float) -> Iterator[tuple[str, Layout]]:
    """What the loop can do in one process."""
    for name, precision, lora in (
        ("full, float32", "float32", None), ("full, bfloat16", "autocast", None),
        ("LoRA r16, float32", "float32", LORA), ("LoRA r16, bfloat16", "bfloat16", LORA),
    ):  # fmt: skip
        for checkpointing in ("none", "selective", "full"):
            told = name + {"none": "", "selective": ", selective", "full": ", checkpointed"}[checkpointing]
            yield told, Layout(precision=precision, lora=lora, checkpointing=checkpointing, trained_share=share)  # type: ignore[arg-type]


def cases(shape: Shape, size: tuple[int, int], share: float) -> list[Case]:
    return [Case(name=n, shape=shape, layout=x, windows=size[0], window_tokens=size[1]) for n, x in layouts(share)]


def traced_table() -> Iterator[str]:
    """Llama-3.1-8B, one window of 4,096 tokens, half of them trained."""
    yield "| Llama-3.1-8B, 1 x 4,096 tokens | planned GiB | traced GiB | error |\n|---|---|---|---|"
    for case in cases(PUBLIC["Llama-3.1-8B"], (1, 4096), 0.5):
        planned, traced = case.plan.peak, case.traced()
        yield f"| {case.name} | {planned / GIB:.2f} | {traced / GIB:.2f} | {planned / traced - 1:+.1%} |"


def measured_table() -> Iterator[str]:
    """Two steps on this CPU in a child process."""
    yield "| measured on a CPU | planned MiB | traced MiB | measured MiB | error of the plan |\n|---|---|---|---|---|"
    for told, shape, size in (("4.6 M", SMALL, (4, 512)), ("125 M", LARGER, (4, 256))):
        for case in cases(shape, size, 0.5):
            if case.layout.checkpointing == "selective" or (shape is LARGER and case.layout.checkpointing == "full"):
                continue
            planned, measured = case.plan.peak, case.measured(**STEADY_MALLOC)
            yield f"| {told}, {case.name} | {planned / 2**20:,.0f} | {case.traced() / 2**20:,.0f} | {measured / 2**20:,.0f} | {planned / measured - 1:+.1%} |"


def public_table() -> Iterator[str]:
    """Published figures; what they do not say about their setting is assumed as stated."""
    seven, seventy = PUBLIC["Llama-2-7B"], PUBLIC["Llama-2-70B"]
    plain = Layout(precision="bfloat16", lora=QV, trained_share=1.0)
    lora = memory(seven, plain, tokens=1304).peak / 1e9
    qlora = memory(seven, replace(plain, lora=replace(QV, quantize="nf4")), tokens=1304).peak / 1e9
    full = sum(states(seven, Layout(precision="bfloat16", lora=None))) / seven.parameters
    sixteen = sum(states(seventy, Layout(precision="bfloat16", lora=None, sharding="zero3", gpus=16))) / 1e9
    rows = [
        ("7B LoRA, GB (Lit-GPT: r8 on q and v, 1 row of 1,304 tokens)", lora, 21.33),
        ("7B QLoRA, GB (the same, NF4)", qlora, 14.18),
        ("7B full, bytes a parameter, states", full, 16.0),
        ("70B full on 16 GPUs, ZeRO-3, GB a GPU, states", sixteen, 70.0),
    ]
    for n, known in (("zero1", 5.5), ("zero2", 3.75), ("zero3", 2.0)):
        each = sum(states(seven, Layout(precision="bfloat16", lora=None, sharding=n, gpus=8))) / seven.parameters  # type: ignore[arg-type]
        rows.append((f"bytes a parameter on 8 GPUs, {n}", each, known))
    yield "| published | planned | published | error |\n|---|---|---|---|"
    for name, planned, published in rows:
        yield f"| {name} | {planned:.2f} | {published:g} | {planned / published - 1:+.1%} |"


def main() -> None:
    """Puts the tables between the marks of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    parts = ["\n".join(table()) for table in (public_table, traced_table, measured_table)]
    PAGE.write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
