"""Checkpoints of one run: a folder per step, the manifest last, never overwritten; the newest whole one is resumed from."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save_file

from ft_pipeline.errors import DriftError, IntegrityError
from ft_pipeline.finetune.retention import LEAST_KEPT, Retention
from ft_pipeline.store.files import clear_errors, sync_file, sync_folder
from ft_pipeline.store.fingerprint import canonical_json, sha256_file
from ft_pipeline.workers.messages import Listener, log

MANIFEST, TENSORS, OPTIMIZER, STATE = "manifest.json", "trained.safetensors", "optimizer.pt", "state.json"


@dataclass
class State:
    """How far a run is: everything a resumed run needs that is no tensor."""

    step: int = 0
    losses: list[dict[str, Any]] = field(default_factory=list)
    """One entry a step: the whole trajectory."""
    validations: dict[str, float] = field(default_factory=dict)
    """Step (as text, for JSON) -> validation loss."""

    def copy(self) -> State:
        """A state that does not change when this one does. Only the last entry of `losses` may still change."""
        losses = [*self.losses[:-1], *({**entry} for entry in self.losses[-1:])]
        return State(self.step, losses, dict(self.validations))

    @property
    def measured(self) -> dict[int, float]:
        """Step -> validation loss."""
        return {int(step): loss for step, loss in self.validations.items()}


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
    keep_best: bool = False
    keep_every: int = 0
    _saved_at: float = field(default_factory=time.monotonic)
    saved_step: int = 0
    """Of the newest checkpoint that was begun."""
    whole_step: int = 0
    """Of the newest one that is whole."""
    lead_steps: int = 0
    """Made while the last one was written: the next is begun so much earlier, to be whole within the interval."""
    lead_seconds: float = 0
    _encoded: list[bytes] = field(default_factory=list)
    """Entries of the trajectory as JSON: a run of a million steps is not encoded anew at each save."""

    @property
    def retention(self) -> Retention:
        """What stays on disk."""
        return Retention(last=self.keep, best=self.keep_best, every=self.keep_every)

    def due(self, step: int) -> bool:
        """True when enough steps or minutes have passed since the last save, or for a step that is kept for good."""
        waited = time.monotonic() - self._saved_at + min(self.lead_seconds, self.every_seconds / 2)
        made = step - self.saved_step + min(self.lead_steps, self.every_steps // 2)
        late = made >= self.every_steps or waited >= self.every_seconds
        return step > self.saved_step and (late or self.retention.is_milestone(step))

    def overdue(self, step: int) -> bool:
        """True when a kill would lose the whole interval: what is being written must become whole first."""
        return step - self.whole_step >= self.every_steps

    def begin(self, step: int) -> None:
        """From this step on the next save is counted."""
        self.saved_step, self._saved_at = step, time.monotonic()

    def save(self, state: State, tensors: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]) -> int:
        """Writes `step-00000123/`; its bytes. Raises StorageError when the disk is full; the checkpoints before stay whole."""
        self.begin(state.step)
        target = self.folder / f"step-{state.step:08d}"
        draft = self.folder / f".{target.name}.{secrets.token_hex(4)}.tmp"
        try:
            with clear_errors(f"writing checkpoint {target.name}"):
                draft.mkdir(parents=True)
                save_file(dict(tensors), draft / TENSORS)
                sync_file(draft / TENSORS)
                files = {
                    TENSORS: sha256_file(draft / TENSORS),
                    OPTIMIZER: _write_optimizer(draft / OPTIMIZER, optimizer),
                    STATE: _write(draft / STATE, self._encode(state)),
                }
                _write(draft / MANIFEST, self._manifest(files))
                size = sum(path.stat().st_size for path in draft.iterdir())
                sync_folder(draft)
                draft.rename(target)
                sync_folder(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self.whole_step = state.step
        self._retain(state)
        return size

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
        self.saved_step = self.whole_step = state.step
        self._encoded = []
        return state, load_file(folder / TENSORS), optimizer

    def tensors_of(self, step: int) -> dict[str, torch.Tensor]:
        """The trained tensors of one step that was kept. Raises IntegrityError when they are not whole."""
        folder = self.folder / f"step-{step:08d}"
        if broken := damage(folder):
            raise IntegrityError(
                f"checkpoint {folder.name}, the best one, is damaged: {broken}",
                why="Its weights would be published.",
                cure=f"delete {self.folder} and run the same command again: it trains anew",
            )
        return load_file(folder / TENSORS)

    def steps(self) -> list[int]:
        """Steps whose checkpoints are on disk, in order."""
        return sorted(int(folder.name.removeprefix("step-")) for folder in self.folder.glob("step-*"))

    def clear(self, state: State) -> None:
        """Deletes what only a resume needed; what is kept for good stays."""
        kept = self.retention.milestones(self.steps(), state.measured)
        self._delete(set(self.steps()) - kept)
        if not kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _encode(self, state: State) -> bytes:
        """canonical_json of the state. The last entry may still change, so it is not remembered."""
        self._encoded += [canonical_json(entry) for entry in state.losses[len(self._encoded) : -1]]
        losses = b",".join(self._encoded + [canonical_json(entry) for entry in state.losses[-1:]])
        validations = canonical_json(state.validations)
        return b'{"losses":[%b],"step":%d,"validations":%b}' % (losses, state.step, validations)

    def _manifest(self, digests: Mapping[str, str]) -> bytes:
        return canonical_json({"fingerprint": self.fingerprint, "torch": str(torch.__version__), "files": digests})

    def _refuse_foreign(self, folder: Path) -> None:
        found = json.loads((folder / MANIFEST).read_bytes())["fingerprint"]
        if found != self.fingerprint:
            raise DriftError(
                f"{folder} is a checkpoint of run {found[:12]}, this is run {self.fingerprint[:12]}",
                why="Resuming it would mix two recipes in one adapter.",
                cure=f"move {self.folder} away and run again",
            )

    def _retain(self, state: State) -> None:
        self._delete(set(self.retention.doomed(self.steps(), state.measured)))

    def _delete(self, steps: set[int]) -> None:
        for step in steps:
            shutil.rmtree(self.folder / f"step-{step:08d}", ignore_errors=True)


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


class _Hashed:
    """A file that is hashed while it is written, without the lock of the interpreter."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """As a file's own."""
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """As a file's own."""
        self.file.flush()


def _write(path: Path, content: bytes) -> str:
    """Digest of a file that now survives a power cut."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _write_optimizer(path: Path, optimizer: Mapping[str, Any]) -> str:
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(dict(optimizer), hashed)  # type: ignore[arg-type]
        except RuntimeError:
            if hashed.failure is None:
                raise
            # torch says "unexpected pos" for a full disk
            raise hashed.failure from None
        file.flush()
        os.fsync(file.fileno())
    return hashed.digest.hexdigest()
