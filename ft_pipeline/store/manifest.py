"""The manifest: what an artifact is, in canonical JSON. Its digest is the artifact's id and the Dagster data version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ft_pipeline.errors import IntegrityError
from ft_pipeline.store.fingerprint import canonical_json, sha256_json
from ft_pipeline.store.paths import MANIFEST, artifact_path

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Ref:
    """Names an artifact: where it lives (by what went in) and what it is (by what came out)."""

    kind: str
    fingerprint: str
    """sha256 of the inputs: kind, config, parents, code. Known before anything runs."""
    digest: str
    """sha256 of the manifest's identity: the inputs and the bytes that came out."""

    @property
    def path(self) -> str:
        """Relative folder in the store."""
        return artifact_path(self.kind, self.fingerprint)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """Everything that decides what an artifact is: the same spec gives the same bytes, so it is computed once."""

    kind: str
    config: Mapping[str, Any]
    parents: Mapping[str, Ref]
    """By role, for example {"raw": Ref, "base": Ref}."""
    code: str
    """`code_digest` of the files that do the transformation."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the inputs."""
        parents = {role: [ref.kind, ref.digest] for role, ref in self.parents.items()}
        return sha256_json(
            {"format": FORMAT, "kind": self.kind, "config": dict(self.config), "parents": parents, "code": self.code}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of an artifact."""

    sha256: str
    size: int
    logical: str | None = None
    """Digest over the logical content, for files whose bytes change with the library version; then this is hashed, not the bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """`identity()` is hashed into the digest; created_at and execution are facts, guarded by the seal only."""

    kind: str
    fingerprint: str
    config: Mapping[str, Any]
    code: str
    parents: Mapping[str, Ref]
    files: Mapping[str, FileEntry]
    counts: Mapping[str, int]
    created_at: str
    execution: Mapping[str, Any]

    def identity(self) -> dict[str, Any]:
        """What is hashed: no location, no time, no hardware."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "config": dict(self.config),
            "code": self.code,
            "parents": {role: asdict(ref) for role, ref in self.parents.items()},
            "files": {n: [e.logical] if e.logical else [e.sha256, e.size] for n, e in self.files.items()},
            "counts": dict(self.counts),
        }

    @property
    def digest(self) -> str:
        """The artifact's id."""
        return sha256_json(self.identity())

    @property
    def content_sha256(self) -> str:
        """Digest of the exact bytes of the files; unlike `digest` it differs between two Parquet files of equal rows."""
        return sha256_json({name: entry.sha256 for name, entry in self.files.items()})

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(entry.size for entry in self.files.values())

    @property
    def ref(self) -> Ref:
        """The reference that children record."""
        return Ref(kind=self.kind, fingerprint=self.fingerprint, digest=self.digest)

    def to_bytes(self) -> bytes:
        """Canonical JSON with the digest and a seal over everything, so that one flipped byte anywhere is seen."""
        body = {"format": FORMAT, **asdict(self), "digest": self.digest}
        return canonical_json({**body, "seal": sha256_json(body)})


def parse_manifest(data: bytes, *, origin: str) -> Manifest:
    """The manifest in the bytes. Raises IntegrityError when a byte of it was changed or it is cut short."""
    try:
        body = json.loads(data)
        seal, digest, version = body.pop("seal"), body.pop("digest"), body.pop("format")
        if version != FORMAT:
            raise IntegrityError(
                f"{origin} has format {version!r}, this version reads {FORMAT}",
                cure="use the ft-pipeline that wrote it",
            )
        manifest = Manifest(
            kind=body["kind"],
            fingerprint=body["fingerprint"],
            config=body["config"],
            code=body["code"],
            parents={role: Ref(**ref) for role, ref in body["parents"].items()},
            files={name: FileEntry(**entry) for name, entry in body["files"].items()},
            counts=body["counts"],
            created_at=body["created_at"],
            execution=body["execution"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            f"{origin} is not a manifest: {error}",
            why="An artifact without a whole manifest does not exist.",
            cure="restore manifest.json from a backup, or delete the folder and run the recipe again",
        ) from None
    whole = {"format": version, **body, "digest": digest}
    if seal != sha256_json(whole) or digest != manifest.digest or data != manifest.to_bytes():
        raise IntegrityError(
            f"{origin} was changed after it was written",
            why="Its seal does not match its content.",
            cure="restore it from a backup, or delete the folder and run the recipe again",
        )
    _require_sound(manifest, origin)
    return manifest


def is_plain(name: str) -> bool:
    """True for a relative name that stays below its folder and is not the manifest's own."""
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts) or "\\" in name or "\0" in name or name == MANIFEST)


def _require_sound(manifest: Manifest, origin: str) -> None:
    """A seal can be made by anybody: the place must follow from the inputs, and no file may lie outside the folder."""
    inputs = Spec(kind=manifest.kind, config=manifest.config, parents=manifest.parents, code=manifest.code)
    if manifest.fingerprint != inputs.fingerprint:
        raise IntegrityError(
            f"{origin} has fingerprint {manifest.fingerprint[:12]}, its inputs give {inputs.fingerprint[:12]}",
            why="An artifact's place follows from its kind, config, parents and code.",
        )
    if outside := [name for name in manifest.files if not is_plain(name)]:
        raise IntegrityError(f"{origin} lists {outside[0]!r}, which is not a file below its folder")
