"""Bytes that no file and no job uses any more. Deleting a file takes its name; this takes what is left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ft_pipeline.store.blobs import Blobs
from ft_pipeline.store.paths import PARTS, part_path
from ft_pipeline.store.platform.files import Files
from ft_pipeline.store.platform.uploads import Uploads


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What went, or would go."""

    blobs: int
    bytes: int
    uploads: int
    """Whose parts went: completed, cancelled, expired, or of no row."""
    kept: int
    """Blobs in use."""


def collect_blobs(names: Files, uploads: Uploads, blobs: Blobs, *, dry_run: bool = False) -> Collected:
    """Deletes every blob without a living file and without a job that has not ended, and parts of uploads that have ended.

    Each blob goes inside the one-writer transaction that looked for its users, so no file or job can begin to use it meanwhile; an
    upload of the same bytes that is under way sees after its commit that they are gone, and puts them again (web/intake.py).
    """
    gone = size = kept = 0
    for sha256 in list(blobs.all()):
        num_bytes = blobs.size(sha256) or 0
        if names.uses_blob(sha256) or not (dry_run or names.release_blob(sha256, partial(blobs.remove, sha256))):
            kept += 1
            continue
        gone, size = gone + 1, size + num_bytes
    return Collected(blobs=gone, bytes=size, uploads=_collect_parts(uploads, blobs, dry_run=dry_run), kept=kept)


def _collect_parts(uploads: Uploads, blobs: Blobs, *, dry_run: bool) -> int:
    gone = 0
    for upload_id in blobs.bucket.list(PARTS):
        if uploads.is_pending(upload_id):
            continue
        gone += 1
        if not dry_run:
            uploads.forget_parts(upload_id, partial(blobs.bucket.remove, part_path(upload_id, "").rstrip("/")))
    return gone
