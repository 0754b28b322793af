"""What is wrong with the files of an artifact, in words that name the file."""

from __future__ import annotations

from pathlib import Path

from ft_pipeline.errors import IntegrityError
from ft_pipeline.store.files import known_sha256
from ft_pipeline.store.manifest import FileEntry, Manifest
from ft_pipeline.store.paths import MANIFEST


def damage(folder: Path, manifest: Manifest) -> str | None:
    """The first file that is missing, cut short, changed or not listed, in words; None when all are whole."""
    for name, entry in manifest.files.items():
        if broken := damage_of(folder / name, name, entry):
            return broken
    extra = unlisted(folder, manifest)
    return f"file {extra} is not in the manifest" if extra else None


def unlisted(folder: Path, manifest: Manifest) -> str | None:
    """The first file of a folder that the manifest does not list: a library that loads the whole folder would read it."""
    listed = {MANIFEST, *manifest.files}
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return min((name for name in found if name not in listed), default=None)


def damage_of(path: Path, name: str, entry: FileEntry) -> str | None:
    """What is wrong with one file, in words; None when it is whole."""
    if not path.is_file():
        return f"file {name} is missing"
    if (size := path.stat().st_size) != entry.size:
        return f"file {name} has {size} bytes, the manifest says {entry.size}"
    if known_sha256(path) != entry.sha256:
        return f"file {name} was changed: its sha256 is not the manifest's {entry.sha256[:12]}"
    return None


def broken_artifact(place: str, broken: str) -> IntegrityError:
    """The error that names the artifact's place and its broken file."""
    return IntegrityError(
        f"{place}: {broken}",
        why="Nothing may be built on bytes that are not what the manifest says.",
        cure="restore the file from a backup, or delete the artifact's folder and run the recipe again",
    )
