"""A run folder that travels: a pod's disk dies with the pod, so what a run needs to go on lies in the store.

`.runs/FINGERPRINT/carried.json` lists files by digest, `objects/` holds their bytes, the list is written last. The pod of rank 0
sends; whoever starts fetches. Messages travel as small numbered files of JSON lines below `messages/GENERATION/`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ft_pipeline.errors import IntegrityError
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import beside
from ft_pipeline.store.fingerprint import sha256_file
from ft_pipeline.store.paths import carried_folder
from ft_pipeline.workers.messages import Message

LIST, OBJECTS, MESSAGES = "carried.json", "objects", "messages"
STAYS = ("job.json", "lock", "log.txt", "messages.jsonl", "ranks")
"""Names in a run folder that belong to one machine."""
CHECKPOINTS = "checkpoints"
PIECES = ("answers", "blocks")
"""Folders of an evaluation (gate/asking.py) and of encode, reference and teacher jobs: each file is work that is not done again."""
TRIES = 5


@dataclass
class Carrier:
    """The traveling files of one run. One process at a time sends."""

    store: Store
    fingerprint: str
    folder: Path
    """The run folder here."""
    _known: dict[Path, tuple[int, int, str]] = field(default_factory=dict)
    """Path -> size, time of change in ns, sha256: a checkpoint is hashed once."""
    _sent: dict[str, str] = field(default_factory=dict)
    """Name -> sha256 of the list in the store."""

    @property
    def root(self) -> str:
        """Relative to the store's root."""
        return carried_folder(self.fingerprint)

    def fetch(self) -> list[str]:
        """Brings every file of the list here; the names. Raises IntegrityError for bytes that are not what the list says."""
        listed = carried_list(self.store, self.fingerprint)
        for name, digest in listed.items():
            target = self.folder / name
            if target.is_file() and sha256_file(target) == digest:
                continue
            partial = beside(target)
            self.store.bucket.download(f"{self.root}/{OBJECTS}/{digest}", partial)
            if sha256_file(partial) != digest:
                partial.unlink()
                raise IntegrityError(f"{name} of run {self.fingerprint[:12]} arrived with other bytes than were sent")
            partial.replace(target)
        self._sent = listed
        return sorted(listed)

    def send(self) -> bool:
        """Brings the folder as it is into the store; False when all of it was there. A file that goes meanwhile belongs to the next look."""
        for _ in range(TRIES):
            try:
                return self._sent_now()
            except FileNotFoundError:
                self._known = {path: facts for path, facts in self._known.items() if path.exists()}
        return False

    def newest(self) -> str:
        """Name of the newest checkpoint here, empty when there is none: when it changes, it is time to send."""
        return max((path.name for path in (self.folder / CHECKPOINTS).glob("step-*")), default="")

    def _sent_now(self) -> bool:
        held = set(self._sent.values())
        files = {path.relative_to(self.folder).as_posix(): self._brought(path, held) for path in self._files()}
        if files == self._sent:
            return False
        # what the list before named stays until the next: another pod may be fetching by it
        bucket, before, self._sent = self.store.bucket, set(self._sent.values()), files
        bucket.write(f"{self.root}/{LIST}", json.dumps(files, sort_keys=True).encode())
        for digest in set(bucket.list(f"{self.root}/{OBJECTS}")) - before - set(files.values()):
            bucket.remove(f"{self.root}/{OBJECTS}/{digest}")
        return True

    def _brought(self, path: Path, held: set[str]) -> str:
        """The digest of a file whose bytes are now among the objects. Files that may grow are copied first, checkpoints never change."""
        facts = path.stat()
        known = self._known.get(path)
        if known is not None and known[:2] == (facts.st_size, facts.st_mtime_ns):
            return known[2]
        copy = path if path.relative_to(self.folder).parts[0] == CHECKPOINTS else beside(path)
        try:
            if copy != path:
                shutil.copyfile(path, copy)
            digest = sha256_file(copy)
            if digest not in held:
                self._upload(copy, f"{self.root}/{OBJECTS}/{digest}")
                held.add(digest)
        finally:
            if copy != path:
                copy.unlink(missing_ok=True)
        self._known[path] = (facts.st_size, facts.st_mtime_ns, digest)
        return digest

    def _files(self) -> Iterator[Path]:
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in inside.parts)
            if path.is_file() and not hidden and inside.parts[0] not in STAYS:
                yield path

    def _upload(self, path: Path, target: str) -> None:
        """Under its name an object is whole."""
        bucket = self.store.bucket
        if not bucket.is_local:
            bucket.upload(path, target)
            return
        place = Path(bucket.path(target))
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = beside(place)
        shutil.copyfile(path, partial)
        partial.replace(place)


@dataclass
class Outbox:
    """Messages on their way from a pod: what is new in messages.jsonl becomes a numbered file in the store."""

    store: Store
    fingerprint: str
    generation: str
    pod: str
    path: Path
    """messages.jsonl"""
    offset: int = 0

    def send(self) -> None:
        """Sends the whole lines that are new."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        if new:
            name = f"{time.time_ns():020d}-{self.pod}.jsonl"
            self.store.bucket.write(f"{_messages(self.fingerprint, self.generation)}/{name}", new)
            self.offset += len(new)


@dataclass
class Inbox:
    """Messages as they arrive from all pods of a generation. A second reader reads them all again."""

    store: Store
    fingerprint: str
    generation: str
    _read: set[str] = field(default_factory=set)

    def read(self) -> Iterator[Message]:
        """Those that are new since the last call, in order of their sending."""
        folder = _messages(self.fingerprint, self.generation)
        new = [name for name in self.store.bucket.list(folder) if name not in self._read and name.endswith(".jsonl")]
        for name in new:
            self._read.add(name)
            for line in (self.store.bucket.read(f"{folder}/{name}") or b"").splitlines():
                yield Message(**json.loads(line))


def carried_list(store: Store, fingerprint: str) -> dict[str, str]:
    """Name -> sha256 of what a run has in the store."""
    found = store.bucket.read(f"{carried_folder(fingerprint)}/{LIST}")
    return json.loads(found) if found else {}


def carried_step(store: Store, fingerprint: str) -> int:
    """Of the newest checkpoint in the store, 0 when there is none."""
    names = {name.split("/")[1] for name in carried_list(store, fingerprint) if name.startswith(f"{CHECKPOINTS}/step-")}
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def carried_pieces(store: Store, fingerprint: str) -> int:
    """How many pieces of work a run without checkpoints has in the store."""
    return sum(name.split("/")[0] in PIECES for name in carried_list(store, fingerprint))


def is_known(store: Store, fingerprint: str) -> bool:
    """True when a pod of this run has been at work and nobody has cleared away after it."""
    return bool(store.bucket.list(carried_folder(fingerprint)))


def forget(store: Store, fingerprint: str) -> None:
    """Deletes what only a resume needed."""
    store.bucket.remove(carried_folder(fingerprint))


def _messages(fingerprint: str, generation: str) -> str:
    return f"{carried_folder(fingerprint)}/{MESSAGES}/{generation}"
