"""torch.compile of the layers: fused kernels between the attentions. Another order of rounding, never another recipe."""

from __future__ import annotations

import importlib.util
import shutil

import torch

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune import attention

COMPILERS = ("g++", "clang++", "c++")


def compile_layers(layers: list[torch.nn.Module], *, device: str) -> None:
    """In place, before their activations are made to be forgotten. Raises RecipeError where there is nothing to compile with.

    Attention is left out, a break in each layer's graph: it is told row lengths as numbers, and new code for each batch is the price of
    tracing those. Everything else is compiled once for all lengths.
    """
    _refuse_without_compiler(device)
    from transformers import AttentionInterface

    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.attend))
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def _refuse_without_compiler(device: str) -> None:
    missing = [] if any(shutil.which(name) for name in COMPILERS) else [f"a C++ compiler ({', '.join(COMPILERS)})"]
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        missing.append("the package triton")
    if missing:
        raise RecipeError(
            f"placement.compile is true and this machine has not {' nor '.join(missing)}",
            why="torch.compile writes code that must be built where it runs.",
            cure="compile: false, which changes no recipe; or install it",
        )
