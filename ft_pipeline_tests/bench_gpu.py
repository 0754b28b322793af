"""`python -m ft_pipeline_tests.bench_gpu`: what our loop reaches on one CUDA GPU, with random weights in the shapes of 1B and 8B models.

For each model and method: tokens/s, MFU and HFU (LoRA-aware, median step after warm-up), memory against the planner, and whether a run
that was stopped and resumed ends in the same bytes. One JSON line each on standard output, and in --out. `--dry-run` runs the
same code on a CPU with a 1 M model, and says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# cuBLAS sums in one order only with this, and torch refuses to be deterministic without it; before CUDA starts
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
SHAPES: dict[str, dict[str, int]] = {
    "1m": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""1b and 8b: Llama-3.2-1B (here with a head of its own) and Llama-3.1-8B."""
METHODS = ("full", "lora", "qlora")
WARM_UP = 3
ROW_TOKENS = 600
"""Mean length of the packed rows."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line of the table."""

    model: str
    method: str
    tokens: int
    windows: int
    steps: int
    checkpointing: bool
    device: str


def main(arguments: list[str] | None = None) -> int:
    """0 when every trial ran or was refused by the planner for memory."""
    asked = _parser().parse_args(arguments)
    if asked.dry_run:
        asked.models, asked.tokens, asked.windows, asked.steps, asked.device = ["1m"], 64, 1, WARM_UP + 1, "cpu"
    _ready(asked.device)
    for trial in _trials(asked):
        told = json.dumps(measured(trial))
        sys.stdout.write(told + "\n")
        sys.stdout.flush()
        if asked.out:
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(told + "\n")
    return 0


def measured(trial: Trial) -> dict[str, Any]:
    """The facts of one trial."""
    told: dict[str, Any] = {**vars(trial), "device_name": _device_name(trial.device)}
    planned = _planned(trial)
    told["planned_gib"] = round(planned / 2**30, 2)
    if (room := _room(trial.device)) and planned > room:
        return {**told, "skipped": f"the planner says {planned / 2**30:.1f} GiB, the GPU has {room / 2**30:.1f}"}
    try:
        with tempfile.TemporaryDirectory() as work:
            told |= _speed(trial, Path(work))
            if trial.model != "8b" or trial.method != "full":
                told |= _resume(trial, Path(work))
    except Exception as error:  # noqa: BLE001 - the next trial is to run, and the line says what happened
        told["error"] = f"{type(error).__name__}: {error}"
    return told


def _speed(trial: Trial, work: Path) -> dict[str, Any]:
    import torch

    from ft_pipeline.finetune.loop import train

    run = _run(trial, work / "speed", steps=trial.steps)
    if cuda := trial.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    train(run)
    lines = [json.loads(line) for line in (work / "speed" / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
    told: dict[str, Any] = {"seconds": round(time.monotonic() - started, 2)}
    for name in ("tokens_per_second", "mfu", "hfu", "mfu_6n", "wait_seconds"):
        if values := [line[name] for line in lines if name in line]:
            told[name] = round(statistics.median(values), 4)
    if cuda:
        reserved, used = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
        told |= {
            "reserved_gib": round(reserved / 2**30, 2),
            "allocated_gib": round(used / 2**30, 2),
            "planner_error": round(_planned(trial) / used - 1, 3),
        }
    return told


def _resume(trial: Trial, work: Path) -> dict[str, Any]:
    """Six steps whole, and six with a stop after the third: the same bytes?"""
    from ft_pipeline.errors import Interrupted
    from ft_pipeline.finetune.loop import train

    whole = _run(trial, work / "whole", steps=6)
    state = train(whole)
    expected = {name: tensor.clone() for name, tensor in whole.trainee.tensors().items()}
    del whole
    try:
        train(_run(trial, work / "stopped", steps=6, stops=3))
        return {"resume": "the stop was not heard"}
    except Interrupted:
        resumed = _run(trial, work / "stopped", steps=6)
    again = train(resumed)
    found = resumed.trainee.tensors()
    worst = max(float((found[name].float() - expected[name].float()).abs().max()) for name in expected)
    exact = worst == 0 and [e["loss"] for e in again.losses] == [e["loss"] for e in state.losses]
    return {"resume": "bit-exact" if exact else "differs", "resume_largest_difference": worst}


@dataclass
class Stop:
    """Asked for once so many steps are written down."""

    metrics: Path
    after: int

    @property
    def asked(self) -> bool:
        """Looked at between steps."""
        return self.metrics.is_file() and self.metrics.read_bytes().count(b"\n") >= self.after


def _run(trial: Trial, folder: Path, *, steps: int, stops: int = 1 << 30) -> Any:
    from ft_pipeline.finetune.checkpoint import Checkpoints
    from ft_pipeline.finetune.loop import Run
    from ft_pipeline.finetune.methods.causal import Causal
    from ft_pipeline.finetune.metrics import Metrics
    from ft_pipeline.finetune.parallel import World
    from ft_pipeline.finetune.schedule import Schedule
    from ft_pipeline.workers.messages import ignore

    folder.mkdir(parents=True, exist_ok=True)
    section = _section(trial)
    items = list(_windows(trial, steps * trial.windows))
    schedule = Schedule(section=section, windows=len(items))
    return Run(
        trainee=_trainee(trial, section), method=Causal(folder), schedule=schedule, train=items, validation=[],
        metrics=Metrics(folder=folder, steps=schedule.steps, listener=ignore),
        stop=Stop(folder / "metrics.jsonl", stops), world=World(checkpointing="full" if trial.checkpointing else "none"),
        checkpoints=Checkpoints(folder / "checkpoints", "f" * 64, ignore),
    )  # fmt: skip


def _section(trial: Trial) -> Any:
    from ft_pipeline.recipe import Finetune, Lora

    quantize = "nf4" if trial.method == "qlora" else "none"
    return Finetune(
        method="sft", lora=None if trial.method == "full" else Lora(rank=16, alpha=32, quantize=quantize),
        learning_rate=1e-5, epochs=1, windows_per_step=trial.windows, windows_per_micro=trial.windows, dtype="bfloat16",
    )  # fmt: skip


def _trainee(trial: Trial, section: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from ft_pipeline.finetune import attention
    from ft_pipeline.finetune.model import trainee_of

    attention.register()
    torch.manual_seed(0)
    with torch.device(trial.device):
        model = AutoModelForCausalLM.from_config(
            _config(trial), dtype=torch.float32 if trial.method == "full" else torch.bfloat16,
            attn_implementation=attention.NAME,
        )  # fmt: skip
    made = trainee_of(model, section, device=trial.device)
    made.model.train()
    return made


def _config(trial: Trial) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[trial.model], max_position_embeddings=max(4096, trial.tokens), tie_word_embeddings=False
    )


def _windows(trial: Trial, number: int) -> Iterator[Any]:
    """Full windows of packed rows of lognormal length; every token but the first of a row is trained."""
    import numpy as np

    from ft_pipeline.encode.artifact import Window

    draw = np.random.default_rng(0)
    for place in range(number):
        lengths, left = [], trial.tokens
        while left:
            lengths.append(min(left, max(8, int(draw.lognormal(np.log(ROW_TOKENS) - 0.3, 0.8)))))
            left -= lengths[-1]
        ends = np.cumsum(lengths).tolist()
        spans = tuple((end - n + 1, end) for n, end in zip(lengths, ends, strict=True) if n > 1)
        ids = draw.integers(0, SHAPES[trial.model]["vocab_size"], trial.tokens).astype(np.int32)
        names = tuple(f"r{place}-{n}" for n in range(len(lengths)))
        yield Window(ids=ids, spans=spans, lengths=tuple(lengths), row_ids=names)


def _planned(trial: Trial) -> float:
    """Bytes at the peak, by the planner."""
    from ft_pipeline.planning.memory import layout_of, memory
    from ft_pipeline.planning.shapes import shape_of

    shape = shape_of({**SHAPES[trial.model], "tie_word_embeddings": False})
    layout = layout_of(_section(trial), checkpointing="full" if trial.checkpointing else "none")
    return memory(shape, layout, tokens=trial.tokens * trial.windows).peak


def _trials(asked: argparse.Namespace) -> Iterator[Trial]:
    for model in asked.models:
        for method in asked.methods:
            for again in (False, True) if asked.checkpointing == "both" else (asked.checkpointing == "full",):
                yield Trial(
                    model=model, method=method, tokens=asked.tokens, windows=asked.windows, steps=asked.steps,
                    checkpointing=again, device=asked.device,
                )  # fmt: skip


def _ready(device: str) -> None:
    import torch

    from ft_pipeline.finetune.loop import make_deterministic

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --dry-run runs the script on a CPU")
    make_deterministic(2)


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU: a dry run, no figure of it says anything"


def _room(device: str) -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ft_pipeline_tests.bench_gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["1b", "8b"], help="shapes, random weights")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tokens", type=int, default=4096, help="of a window")
    parser.add_argument("--windows", type=int, default=2, help="in a micro-batch, which is a step here")
    parser.add_argument("--steps", type=int, default=20, help=f"timed; the first {WARM_UP} do not count")
    parser.add_argument("--checkpointing", choices=["none", "full", "both"], default="both", help="of activations")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="JSON lines are appended to this file")
    parser.add_argument("--dry-run", action="store_true", help="a 1 M model on the CPU: proves that the script runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
