"""Checkpoints of one run: a folder per step, the manifest last, never overwritten; the newest whole one is resumed from."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from ft_pipeline.errors import DriftError
from ft_pipeline.store.files import clear_errors, sync_folder, write_atomic
from ft_pipeline.store.fingerprint import canonical_json, sha256_bytes, sha256_file
from ft_pipeline.workers.messages import Listener, log

MANIFEST, TENSORS, OPTIMIZER, STATE = "manifest.json", "trained.safetensors", "optimizer.pt", "state.json"
LEAST_KEPT = 2
"""The newest may be damaged by the machine that made it: the one before must be there."""


@dataclass
class State:
    """How far a run is: everything a resumed run needs that is no tensor."""

    step: int = 0
    losses: list[dict[str, Any]] = field(default_factory=list)
    """One entry a step: the whole trajectory."""
    validations: dict[str, float] = field(default_factory=dict)
    """Step (as text, for JSON) -> validation loss."""


@dataclass
class Checkpoints:
    """The checkpoints of one run folder."""

    folder: Path
    fingerprint: str
    """Of the artifact that the run will be: a checkpoint of another one is refused."""
    listener: Listener
    keep: int = LEAST_KEPT
    every_steps: int = 500
    every_seconds: float = 600
    _saved_at: float = field(default_factory=time.monotonic)
    saved_step: int = 0

    def due(self, step: int) -> bool:
        """True when enough steps or minutes have passed since the last save."""
        waited = time.monotonic() - self._saved_at
        return step - self.saved_step >= self.every_steps or (step > self.saved_step and waited >= self.every_seconds)

    def save(self, state: State, tensors: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]) -> None:
        """Writes `step-00000123/`. Raises StorageError when the disk is full; the checkpoints before stay whole."""
        target = self.folder / f"step-{state.step:08d}"
        draft = self.folder / f".{target.name}.{secrets.token_hex(4)}.tmp"
        buffer = io.BytesIO()
        torch.save(dict(optimizer), buffer)
        files = {
            TENSORS: save(dict(tensors)),
            OPTIMIZER: buffer.getvalue(),
            STATE: canonical_json(asdict(state)),
        }
        try:
            with clear_errors(f"writing checkpoint {target.name}"):
                for name, content in files.items():
                    write_atomic(draft / name, content)
                write_atomic(draft / MANIFEST, self._manifest(files))
                draft.rename(target)
                sync_folder(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self.saved_step, self._saved_at = state.step, time.monotonic()
        self._retain()

    def newest_whole(self) -> Path | None:
        """The newest undamaged checkpoint. A damaged one is named in a message and set aside. Raises DriftError for another run's."""
        for leftover in self.folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            if broken := damage(folder):
                log(self.listener, f"checkpoint {folder.name} is damaged ({broken}): resuming from the one before")
                folder.rename(folder.with_name(f"damaged-{folder.name}-{secrets.token_hex(4)}"))
                continue
            self._refuse_foreign(folder)
            return folder
        return None

    def load(self, folder: Path) -> tuple[State, dict[str, torch.Tensor], dict[str, Any]]:
        """State, trained tensors and optimizer state of a checkpoint."""
        state = State(**json.loads((folder / STATE).read_bytes()))
        optimizer = torch.load(folder / OPTIMIZER, weights_only=True)
        self.saved_step = state.step
        return state, load_file(folder / TENSORS), optimizer

    def _manifest(self, files: Mapping[str, bytes]) -> bytes:
        digests = {name: sha256_bytes(content) for name, content in files.items()}
        return canonical_json({"fingerprint": self.fingerprint, "torch": str(torch.__version__), "files": digests})

    def _refuse_foreign(self, folder: Path) -> None:
        found = json.loads((folder / MANIFEST).read_bytes())["fingerprint"]
        if found != self.fingerprint:
            raise DriftError(
                f"{folder} is a checkpoint of run {found[:12]}, this is run {self.fingerprint[:12]}",
                why="Resuming it would mix two recipes in one adapter.",
                cure=f"move {self.folder} away and run again",
            )

    def _retain(self) -> None:
        for folder in sorted(self.folder.glob("step-*"), reverse=True)[max(LEAST_KEPT, self.keep) :]:
            shutil.rmtree(folder, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None when every file is what its manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no whole manifest"
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != digest:
            return f"{name} was changed or cut short"
    return None
