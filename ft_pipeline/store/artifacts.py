"""Find, publish, fetch and list artifacts. A draft is a local folder; publishing hashes it and puts the manifest last."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DriftError, IntegrityError, NotFoundError, StorageError, UserError
from ft_pipeline.settings import Settings
from ft_pipeline.store.damage import broken_artifact, damage, damage_of, unlisted
from ft_pipeline.store.files import (
    Bucket,
    beside,
    clear_errors,
    locked,
    sync_file,
    sync_folder,
    write_atomic,
)
from ft_pipeline.store.fingerprint import sha256_file
from ft_pipeline.store.manifest import FileEntry, Manifest, Ref, Spec, is_plain, parse_manifest
from ft_pipeline.store.paths import MANIFEST, ROOM_OF, artifact_path, content_path, drafts_folder, resolve

STALE_SECONDS = 24 * 3600
"""A draft in which nothing changed for so long belongs to a process that died."""


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
    """Local folder for downloads, and for drafts when the root is a bucket."""

    def manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        """The manifest at a place, None when no artifact is there. Raises IntegrityError when it is damaged or of another place."""
        path = f"{artifact_path(kind, fingerprint)}/{MANIFEST}"
        content = self.bucket.read(path)
        return None if content is None else self._parsed(path, content)

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact that the spec was or would be, None when it has to be made. Its files are verified before it is reused."""
        manifest = self.manifest(spec.kind, spec.fingerprint)
        return None if manifest is None else self._verified(manifest)

    def recorded(self, ref: Ref) -> Manifest:
        """The manifest that a reference names, its files not looked at. Raises NotFoundError, IntegrityError."""
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
        return manifest

    def fetch(self, ref: Ref) -> Artifact:
        """The artifact with all files local and verified. Raises NotFoundError, IntegrityError."""
        return self._verified(self.recorded(ref))

    def fetch_file(self, ref: Ref, name: str) -> Path:
        """One file of an artifact, local and verified, without the others. Raises NotFoundError, IntegrityError."""
        manifest = self.recorded(ref)
        if name not in manifest.files:
            raise IntegrityError(f"{ref.path} has no file {name}")
        folder = self._local_folder(manifest, name)
        if broken := damage_of(folder / name, name, manifest.files[name]):
            raise broken_artifact(self.bucket.path(ref.path), broken)
        return folder / name

    def location(self, manifest: Manifest, name: str) -> str:
        """Path of a file of an artifact, relative to the root."""
        folder = manifest.ref.path if self.bucket.is_local else content_path(manifest.ref.path, manifest.content_sha256)
        return f"{folder}/{name}"

    def unlisted(self, manifest: Manifest) -> str | None:
        """A file beside those of the manifest; in a bucket it does not matter, because only listed files are copied."""
        return unlisted(Path(self.bucket.path(manifest.ref.path)), manifest) if self.bucket.is_local else None

    @contextlib.contextmanager
    def publish(self, spec: Spec) -> Iterator[Draft]:
        """A draft that becomes the artifact when the block ends without an error; discarded otherwise.

        Raises DriftError when an artifact of the same spec exists with other bytes, StorageError when the disk is full.
        """
        drafts = drafts_folder(self.bucket.root, self.work)
        folder = drafts / f"{spec.kind}-{spec.fingerprint[:12]}-{secrets.token_hex(4)}"
        draft = Draft(spec, folder)
        try:
            with clear_errors(f"writing {spec.kind}"):
                folder.mkdir(parents=True)
                _remove_stale(drafts)
                yield draft
                manifest = _seal(draft)
                put = self._rename if self.bucket.is_local else self._upload
                put(folder, manifest)
            draft.artifact = self.fetch(manifest.ref)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def all(self, *kinds: str) -> Iterator[Manifest]:
        """Every whole manifest of the kinds (default: all kinds), in order of kind and fingerprint."""
        for kind in kinds or ROOM_OF:
            names = self.bucket.list(f"{ROOM_OF[kind]}/{kind}")
            paths = [f"{artifact_path(kind, name)}/{MANIFEST}" for name in names if len(name) == 64]
            for path, content in self.bucket.read_all(paths).items():
                yield self._parsed(path, content)

    def _parsed(self, path: str, content: bytes) -> Manifest:
        """The manifest in the bytes at a path of the store."""
        found = parse_manifest(content, origin=self.bucket.path(path))
        if f"{found.ref.path}/{MANIFEST}" != path:
            raise IntegrityError(f"{self.bucket.path(path)} belongs to {found.ref.path}: it was moved here")
        return found

    def _verified(self, manifest: Manifest) -> Artifact:
        folder = self._local_folder(manifest, *manifest.files)
        if broken := damage(folder, manifest):
            raise broken_artifact(self.bucket.path(manifest.ref.path), broken)
        return Artifact(manifest, folder)

    def _local_folder(self, manifest: Manifest, *names: str) -> Path:
        """The folder in which the named files can be opened; for a bucket they are copied into the cache and verified."""
        if self.bucket.is_local:
            return Path(self.bucket.path(manifest.ref.path))
        cached = self.work / "cache" / manifest.content_sha256
        for name in names:
            if damage_of(cached / name, name, manifest.files[name]) is not None:
                self._download(manifest, name, cached / name)
        return cached

    def _download(self, manifest: Manifest, name: str, target: Path) -> None:
        partial = beside(target)
        try:
            self.bucket.download(self.location(manifest, name), partial)
            if broken := damage_of(partial, name, manifest.files[name]):
                raise broken_artifact(self.bucket.path(manifest.ref.path), broken)
            with clear_errors(f"writing {target}"):
                partial.replace(target)
        except FileNotFoundError:
            raise broken_artifact(self.bucket.path(manifest.ref.path), f"file {name} is missing") from None
        finally:
            partial.unlink(missing_ok=True)

    def _rename(self, folder: Path, manifest: Manifest) -> None:
        """Puts the draft in its place, one publisher at a time. A folder without a manifest is no artifact and gives way."""
        write_atomic(folder / MANIFEST, manifest.to_bytes())
        target = Path(self.bucket.path(manifest.ref.path))
        with locked(folder.parent / "lock"):
            if (before := self.manifest(manifest.kind, manifest.fingerprint)) is not None:
                _same_or_drift(before, manifest)
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            folder.rename(target)
            sync_folder(target.parent)

    def _upload(self, folder: Path, manifest: Manifest) -> None:
        """Files first, read back and hashed; then the manifest, if nobody was faster; then a look at who won."""
        if (before := self.manifest(manifest.kind, manifest.fingerprint)) is not None:
            _same_or_drift(before, manifest)
            return
        for name in manifest.files:
            self.bucket.upload(folder / name, self.location(manifest, name))
        self._local_folder(manifest, *manifest.files)
        self.bucket.create(f"{manifest.ref.path}/{MANIFEST}", manifest.to_bytes())
        winner = self.manifest(manifest.kind, manifest.fingerprint)
        if winner is None:
            raise StorageError(
                f"{self.bucket.path(manifest.ref.path, MANIFEST)} cannot be read after it was written",
                why="The bucket must be read-after-write consistent, as S3 is.",
            )
        _same_or_drift(winner, manifest)


def open_store(settings: Settings) -> Store:
    """The store that the settings name. Raises UserError for a kind of place that is not known."""
    root = resolve(settings.store_uri, settings.home)
    if "://" not in root:
        root = str(Path(root).absolute())
    elif not root.startswith("s3://"):
        raise UserError(f"FT_STORE names {root}", cure="use a folder or s3://bucket/prefix")
    return Store(Bucket(root, settings.s3_endpoint), settings.work)


def _remove_stale(drafts: Path) -> None:
    """Deletes drafts that a killed process left behind."""
    now = time.time()
    for folder in drafts.iterdir():
        # another process may publish its draft, which moves it away, at this moment
        with contextlib.suppress(FileNotFoundError):
            if folder.is_dir() and now - folder.stat().st_mtime > STALE_SECONDS:
                newest = max((p.lstat().st_mtime for p in folder.rglob("*")), default=0)
                if now - newest > STALE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def _seal(draft: Draft) -> Manifest:
    """Hashes every file of the draft and makes it durable."""
    files = {}
    for path in sorted(draft.folder.rglob("*")):
        name = path.relative_to(draft.folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()) or not is_plain(name):
            raise DriftError(
                f"the draft of {draft.spec.kind} holds {name}, which is a link or has a reserved name",
                why="An artifact must hold its own bytes.",
                cure="copy the file into the draft",
            )
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
            size, logical = path.stat().st_size, draft.logical.get(name)
            files[name] = FileEntry(sha256=sha256_file(path), size=size, logical=logical)
    sync_folder(draft.folder)
    if not files or not files.keys() >= draft.logical.keys():
        raise DriftError(
            f"the draft of {draft.spec.kind} lacks {', '.join({*draft.logical} - {*files}) or 'every file'}"
        )
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
