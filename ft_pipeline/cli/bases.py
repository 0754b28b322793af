"""`base`: base models made on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console, progress_bars
from ft_pipeline.errors import TrainingFailed
from ft_pipeline.workers.messages import Listener, read_messages


@click.group()
def base() -> None:
    """Base models made on this machine."""


@base.command("build-tiny")
@click.option("--seed", default=0, show_default=True, help="Another seed gives another version of the same base model.")
@click.option(
    "--steps", default=None, type=click.IntRange(min=1), help="Training steps (default: about a minute on two cores)."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write (default: FT_HOME/bases/tiny-docs).")
def build_tiny(seed: int, steps: int | None, out: Path | None) -> None:
    """Train a tokenizer and a one-million-parameter Llama on the documentation inside this Python: a real checkpoint folder."""
    where = settings.load()
    with progress_bars() as listener:
        folder = build(where, seed=seed, steps=steps, out=out, listener=listener)
    console.print(f"base model in {folder}", soft_wrap=True)
