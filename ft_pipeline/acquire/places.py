"""A place that files can come from: a local file or folder, a bucket, an address, a Hub repository. Listed, hashed, copied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ft_pipeline.acquire import bucket, web
from ft_pipeline.acquire.download import RemoteFile, download, forget, known_sha256
from ft_pipeline.errors import DataError, DriftError, NotFoundError, did_you_mean
from ft_pipeline.settings import Settings
from ft_pipeline.store.files import clear_errors
from ft_pipeline.store.fingerprint import CHUNK_BYTES, sha256_json
from ft_pipeline.store.paths import resolve
from ft_pipeline.workers.messages import Listener, progress

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalFile:
    """A file on this machine that may still be edited."""

    name: str
    path: Path

    @property
    def size(self) -> int:
        """Bytes now."""
        return self.path.stat().st_size


File = LocalFile | RemoteFile


@dataclass
class Meter:
    """Adds up bytes and tells a listener."""

    listener: Listener
    task: str
    total: int
    done: int = 0

    def __call__(self, num_bytes: int) -> None:
        """Counts bytes that are done; a negative number takes back what has to be done again."""
        self.done = min(self.done + num_bytes, self.total) if self.total else self.done + num_bytes
        progress(self.listener, self.task, self.done, total=max(self.total, self.done), unit="B")


@dataclass(frozen=True)
class Desk:
    """Where downloads lie until they are in the store, and who is told."""

    settings: Settings
    listener: Listener
    task: str
    digests: dict[str, str] = field(default_factory=dict)
    """File name -> sha256, filled by `hashed` and `copy`."""
    _fetched: dict[str, tuple[Path, str]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Partial and whole downloads."""
        return self.settings.work / "downloads"

    def hashed(self, files: Sequence[File]) -> dict[str, str]:
        """Name -> sha256 of every file; a remote one is downloaded unless its version is known from before."""
        unknown = [f for f in files if f.name not in self.digests]
        meter = Meter(self.listener, f"{self.task}: hash", sum(f.size or 0 for f in unknown))
        for file in unknown:
            self.digests[file.name] = self._sha256(file, meter)
        return {f.name: self.digests[f.name] for f in files}

    def copy(self, files: Sequence[File], folder: Path) -> None:
        """Puts every file below a folder, and its digest into `digests`. Raises DriftError when one changed since it was hashed."""
        meter = Meter(self.listener, f"{self.task}: copy", sum(f.size or 0 for f in files))
        for file in files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = self._copy(file, target, meter)
            if self.digests.setdefault(file.name, digest) != digest:
                raise DriftError(
                    f"{file.name} changed while it was read", cure="let it be written to the end, then run again"
                )

    def tidy(self, files: Sequence[File]) -> None:
        """Removes downloads that are in the store by now."""
        for file in files:
            if isinstance(file, RemoteFile):
                forget(file, self.folder)

    def _sha256(self, file: File, meter: Meter) -> str:
        if isinstance(file, LocalFile):
            return _stream(file.path, None, meter)
        if known := known_sha256(file, self.folder):
            meter(file.size or 0)
            return known
        return self._fetch(file, meter)[1]

    def _copy(self, file: File, target: Path, meter: Meter) -> str:
        if isinstance(file, LocalFile):
            return _stream(file.path, target, meter)
        whole, digest = self._fetch(file, meter)
        try:
            target.hardlink_to(whole)
        except OSError:
            # exFAT and some network file systems have no hard links
            return _stream(whole, target, meter)
        return digest

    def _fetch(self, file: RemoteFile, meter: Meter) -> tuple[Path, str]:
        """Downloads once per desk, also when the server names no version."""
        if file.name not in self._fetched:
            self._fetched[file.name] = download(file, self.folder, meter)
        return self._fetched[file.name]


def listing(uri: str, settings: Settings, *, wanted: Callable[[str], bool], what: str) -> list[File]:
    """The files of a local path, `home://`, `s3://` or `https://` URI whose names are wanted, in order of name.

    Raises NotFoundError with the nearest name, DataError when nothing is wanted or the only thing there is empty.
    """
    if uri.startswith(("http://", "https://")):
        found: list[File] = [web.web_file(uri)]
    elif uri.startswith("s3://"):
        found = [*bucket.bucket_files(uri, settings.s3_endpoint)]
    else:
        found = [*_local_files(Path(resolve(uri, settings.home)), uri)]
    files = [f for f in found if wanted(f.name)]
    if not files:
        raise DataError(
            f"{uri} holds no {what}",
            why=f"It holds: {', '.join(f.name for f in found[:8]) or 'nothing'}.",
            cure=f"point at {what}",
        )
    if all(f.size == 0 for f in files):
        raise DataError(f"{uri} is empty (0 bytes)", cure="check the program that writes it")
    return files


def content_digest(digests: dict[str, str]) -> str:
    """Identity of files wherever they lie: sha256 over sorted (name, sha256)."""
    return sha256_json(sorted(digests.items()))


def place_name(uri: str) -> str:
    """A URI as it may be shown: without user, password and query."""
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _local_files(path: Path, uri: str) -> Iterator[LocalFile]:
    if path.is_file():
        yield _checked(LocalFile(name=path.name, path=path))
    elif path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if not any(part.startswith(".") for part in name.split("/")):
                yield _checked(LocalFile(name=name, path=file))
    else:
        raise NotFoundError(f"no file or folder at {uri}" + _where(path, uri), cure=_nearest(path))


def _where(path: Path, uri: str) -> str:
    return "" if str(path) == uri else f" ({path})"


def _nearest(path: Path) -> str:
    folder = next(p for p in path.parents if p.is_dir())
    if folder != path.parent:
        return f"the nearest folder that exists is {folder}"
    names = [p.name for p in sorted(folder.iterdir()) if not p.name.startswith(".")][:200]
    return f"in {folder}: {did_you_mean(path.name, names)}" if names else f"{folder} is empty"


def _checked(file: LocalFile) -> LocalFile:
    with file.path.open("rb") as handle:
        if handle.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(
                f"{file.path} is a git-lfs pointer, not the file itself", cure="run `git lfs pull` in its repository"
            )
    return file


def _stream(source: Path, target: Path | None, meter: Meter) -> str:
    """Hashes a file and, when there is a target, copies it in the same pass."""
    digest = hashlib.sha256()
    with clear_errors(f"copying {source.name}"), source.open("rb") as reading:
        writing = target.open("wb") if target else None
        try:
            while piece := reading.read(CHUNK_BYTES):
                digest.update(piece)
                if writing:
                    writing.write(piece)
                meter(len(piece))
        finally:
            if writing:
                writing.close()
    return digest.hexdigest()
