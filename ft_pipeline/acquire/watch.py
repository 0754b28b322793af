"""What is at a base model's source now, asked every few seconds: bytes are read only after names, sizes, times or ETags moved."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ft_pipeline.acquire import hub
from ft_pipeline.acquire.places import File, LocalFile, content_digest, listing
from ft_pipeline.acquire.snapshot import class_of, wanted
from ft_pipeline.recipe import BaseModel
from ft_pipeline.settings import Settings
from ft_pipeline.store.files import known_sha256
from ft_pipeline.store.fingerprint import sha256_json

BUCKET = "s3://"


def source_key(source: BaseModel) -> str:
    """The base that a recipe watches: its URI, on the Hub with the branch or tag that the recipe names."""
    followed = source.uri.startswith(hub.SCHEME) and source.revision
    return f"{source.uri}@{source.revision}" if followed else source.uri


def signature(source: BaseModel, settings: Settings) -> str:
    """Equal while nothing moved: the Hub's commit, or names, sizes and times (of a bucket ETags). Reads no weights.

    Raises NotFoundError, DataError, StorageError.
    """
    if source.uri.startswith(hub.SCHEME):
        return hub.commit_of(hub.parse(source.uri), "model", revision=source.revision, settings=settings)
    return sha256_json([_facts(file) for file in _files(source, settings)])


def live_version(source: BaseModel, settings: Settings, *, budget_seconds: float = 20) -> str | None:
    """The data version of `base_model` as it is now: commit, content digest of a folder, digest of a bucket's ETags.

    A folder is hashed a file at a time and what was hashed is remembered by this process; None when the budget ended before the
    last file: ask again. A bucket is not downloaded to be hashed: an object written again with equal bytes may count as moved,
    which costs a run that reuses everything.
    """
    if source.uri.startswith((hub.SCHEME, BUCKET)):
        return signature(source, settings)
    until, digests = time.monotonic() + budget_seconds, {}
    for file in _files(source, settings):
        if time.monotonic() > until:
            return None
        assert isinstance(file, LocalFile)
        digests[file.name] = known_sha256(file.path)
    return content_digest(digests)


def bucket_version(source: BaseModel, settings: Settings) -> str | None:
    """The data version of a base in a bucket, None for any other place, where it is the revision."""
    return signature(source, settings) if source.uri.startswith(BUCKET) else None


def _files(source: BaseModel, settings: Settings) -> Sequence[File]:
    found = listing(source.uri, settings, wanted=wanted, what="model snapshot")
    return [file for file in found if class_of(file.name)]


def _facts(file: File) -> list[str | int | None]:
    if isinstance(file, LocalFile):
        stat = file.path.stat()
        return [file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return [file.name, file.size, file.version]
