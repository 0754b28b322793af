"""Find, publish, fetch and list artifacts. A draft is a local folder; publishing hashes it and puts the manifest last."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DriftError, IntegrityError, NotFoundError
from ft_pipeline.settings import Settings
from ft_pipeline.store.files import Bucket, clear_errors, sync_folder, write_atomic
from ft_pipeline.store.fingerprint import sha256_file
from ft_pipeline.store.manifest import FileEntry, Manifest, Ref, Spec, parse_manifest
from ft_pipeline.store.paths import MANIFEST, ROOM_OF, artifact_path


@dataclass
class Draft:
    """An artifact being made. Write files below `folder`, then let the `with` block end."""

    spec: Spec
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    """Numbers that follow from the inputs; hashed."""
    logical: dict[str, str] = field(default_factory=dict)
    """File name -> logical digest, for Parquet."""
    execution: dict[str, Any] = field(default_factory=dict)
    """Facts of this run (seconds, attempts, machine); never hashed."""
    artifact: Artifact | None = None
    """Set once published."""


@dataclass(frozen=True)
class Artifact:
    """A published artifact and a local folder with its verified files."""

    manifest: Manifest
    folder: Path

    @property
    def ref(self) -> Ref:
        """The reference that children record."""
        return self.manifest.ref

    def file(self, name: str) -> Path:
        """Local path of a file of the artifact. Raises IntegrityError when the manifest does not list it."""
        if name not in self.manifest.files:
            raise IntegrityError(f"{self.ref.path} has no file {name}")
        return self.folder / name


@dataclass(frozen=True)
class Store:
    """The artifacts below one root."""

    bucket: Bucket
    work: Path
    """Local folder for drafts and downloads."""

    def manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        """The manifest at a place, None when no artifact is there. Raises IntegrityError when it is damaged."""
        path = f"{artifact_path(kind, fingerprint)}/{MANIFEST}"
        data = self.bucket.read(path)
        return None if data is None else parse_manifest(data, origin=self.bucket.path(path))

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact that the spec was or would be, None when it has to be made. Its files are verified before it is reused."""
        manifest = self.manifest(spec.kind, spec.fingerprint)
        return None if manifest is None else self.fetch(manifest.ref)

    def fetch(self, ref: Ref) -> Artifact:
        """The artifact with all files local and verified. Raises NotFoundError, IntegrityError."""
        manifest = self.manifest(ref.kind, ref.fingerprint)
        if manifest is None:
            raise NotFoundError(
                f"no artifact at {self.bucket.path(ref.path)}",
                cure="run the recipe again: it is made anew from its parents",
            )
        if manifest.digest != ref.digest:
            raise IntegrityError(
                f"{ref.path} has digest {manifest.digest[:12]}, its child recorded {ref.digest[:12]}",
                why="The artifact was replaced after the child was made.",
            )
        folder = self._local_folder(manifest)
        if broken := damage(folder, manifest):
            raise IntegrityError(
                f"{self.bucket.path(ref.path)}: {broken}",
                why="Nothing may be built on bytes that are not what the manifest says.",
                cure="restore the file from a backup, or delete the artifact's folder and run the recipe again",
            )
        return Artifact(manifest, folder)

    @contextlib.contextmanager
    def publish(self, spec: Spec) -> Iterator[Draft]:
        """A draft that becomes the artifact when the block ends without an error; discarded otherwise.

        Raises DriftError when an artifact of the same spec exists with other bytes, StorageError when the disk is full.
        """
        folder = self.work / "drafts" / f"{spec.kind}-{spec.fingerprint[:12]}-{secrets.token_hex(4)}"
        draft = Draft(spec, folder)
        try:
            with clear_errors(f"writing {spec.kind}"):
                folder.mkdir(parents=True)
                yield draft
                manifest = _seal(draft)
                self._put(folder, manifest)
            draft.artifact = self.fetch(manifest.ref)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def all(self, *kinds: str) -> Iterator[Manifest]:
        """Every whole manifest of the kinds (default: all kinds), in order of kind and fingerprint."""
        for kind in kinds or ROOM_OF:
            for fingerprint in self.bucket.list(f"{ROOM_OF[kind]}/{kind}"):
                if len(fingerprint) == 64 and (manifest := self.manifest(kind, fingerprint)):
                    yield manifest

    def _local_folder(self, manifest: Manifest) -> Path:
        if self.bucket.is_local:
            return Path(self.bucket.path(manifest.ref.path))
        cached = self.work / "cache" / manifest.digest
        for name, entry in manifest.files.items():
            target = cached / name
            if not target.is_file() or target.stat().st_size != entry.size:
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
                with clear_errors(f"downloading {name}"):
                    self.bucket.filesystem.get_file(self.bucket.path(manifest.ref.path, name), str(partial))
                    partial.replace(target)
        return cached

    def _put(self, folder: Path, manifest: Manifest) -> None:
        before = self.manifest(manifest.kind, manifest.fingerprint)
        if before is not None:
            _same_or_drift(before, manifest)
            return
        if self.bucket.is_local:
            self._rename(folder, manifest)
        else:
            self._upload(folder, manifest)

    def _rename(self, folder: Path, manifest: Manifest) -> None:
        write_atomic(folder / MANIFEST, manifest.to_bytes())
        target = Path(self.bucket.path(manifest.ref.path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not (target / MANIFEST).exists():
            shutil.rmtree(target)
        try:
            folder.rename(target)
        except OSError:
            winner = self.manifest(manifest.kind, manifest.fingerprint)
            if winner is not None:
                _same_or_drift(winner, manifest)
                return
            copy = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
            shutil.copytree(folder, copy)
            copy.rename(target)
        sync_folder(target.parent)

    def _upload(self, folder: Path, manifest: Manifest) -> None:
        files = self.bucket.filesystem
        for name in manifest.files:
            files.put_file(str(folder / name), self.bucket.path(manifest.ref.path, name))
        try:
            files.pipe_file(self.bucket.path(manifest.ref.path, MANIFEST), manifest.to_bytes(), mode="create")
        except FileExistsError:
            files.invalidate_cache()
            winner = self.manifest(manifest.kind, manifest.fingerprint)
            if winner is not None:
                _same_or_drift(winner, manifest)


def open_store(settings: Settings) -> Store:
    """The store that the settings name."""
    return Store(Bucket(settings.store_uri, settings.s3_endpoint), settings.work)


def damage(folder: Path, manifest: Manifest) -> str | None:
    """The first file that is missing, cut short, changed or not listed, in words; None when all are whole."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"file {name} is missing"
        if path.stat().st_size != entry.size:
            return f"file {name} has {path.stat().st_size} bytes, the manifest says {entry.size}"
        if sha256_file(path) != entry.sha256:
            return f"file {name} was changed: its sha256 is not the manifest's {entry.sha256[:12]}"
    return None


def _seal(draft: Draft) -> Manifest:
    """Hashes and syncs every file of the draft."""
    paths = sorted(p for p in draft.folder.rglob("*") if p.is_file())
    files = {}
    for path in paths:
        with path.open("rb+") as handle:
            handle.flush()
        name = path.relative_to(draft.folder).as_posix()
        files[name] = FileEntry(sha256=sha256_file(path), size=path.stat().st_size, logical=draft.logical.get(name))
    if not files:
        raise DriftError(f"the draft of {draft.spec.kind} holds no file")
    return Manifest(
        kind=draft.spec.kind, fingerprint=draft.spec.fingerprint, config=draft.spec.config, code=draft.spec.code,
        parents=draft.spec.parents, files=files, counts=draft.counts,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"), execution=draft.execution,
    )  # fmt: skip


def _same_or_drift(before: Manifest, now: Manifest) -> None:
    if before.digest == now.digest:
        return
    changed = sorted(
        n for n in {*before.files, *now.files} if before.identity()["files"].get(n) != now.identity()["files"].get(n)
    )
    raise DriftError(
        f"{now.ref.path} was made again with other content: {', '.join(changed) or 'counts'}",
        why="The same inputs must give the same artifact; one of the two runs read something that is not recorded.",
        cure=f"keep the stored one ({before.digest[:12]}), or delete its folder to accept the new one ({now.digest[:12]})",
    )
