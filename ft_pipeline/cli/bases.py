"""`base`: base models made on this machine."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path

import click

from ft_pipeline import settings
from ft_pipeline.acquire import harvest
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


def build(where: settings.Settings, *, seed: int, steps: int | None, out: Path | None, listener: Listener) -> Path:
    """The folder of the built base model. Harvests first when the text is not there. Raises TrainingFailed with the child's last words."""
    text = where.home / "demo" / harvest.PRETRAIN
    if not harvest.is_whole(text.parent):
        harvest.harvest(text.parent, listener=listener)
    folder = out or where.home / "bases" / "tiny-docs"
    messages = where.work / "build-tiny" / f"messages-{secrets.token_hex(4)}.jsonl"
    messages.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ft_pipeline.acquire.tiny_base", "--text", str(text), "--out", str(folder),
               "--seed", str(seed), "--threads", str(where.threads), "--messages", str(messages)]  # fmt: skip
    if steps:
        command += ["--steps", str(steps)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, env=settings.child_environment(where))
    try:
        follow(child, messages, listener)
    finally:
        child.kill()
        messages.unlink(missing_ok=True)
    _, said = child.communicate()
    if child.returncode != 0:
        raise TrainingFailed(f"building the base model failed: {said.decode(errors='replace')[-500:]}")
    return folder


def follow(child: subprocess.Popen[bytes], messages: Path, listener: Listener) -> None:
    """Shows what the child says until it has ended."""
    offset, ended = 0, False
    while not ended:
        ended = child.poll() is not None
        for message, end in read_messages(messages, offset):
            listener(message)
            offset = end
        time.sleep(0.1)
