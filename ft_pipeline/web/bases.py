"""Which base model a digest is, and which digest a base model has: between the names of the offer and the artifacts of the store."""

from __future__ import annotations

from collections.abc import Mapping

from ft_pipeline.acquire import hub
from ft_pipeline.acquire.artifact import BASE_KIND
from ft_pipeline.errors import FtError
from ft_pipeline.jobs.offer import Base, Offer
from ft_pipeline.recipe import BaseModel
from ft_pipeline.store.manifest import Manifest
from ft_pipeline.web.platform import Platform


def is_of(manifest: Manifest, base: Base) -> bool:
    """True for the artifact of a base of the offer, whatever its revision where the offer pins none."""
    config = manifest.config
    if base.revision is not None and base.revision not in (config.get("revision"), config.get("content")):
        return False
    if base.uri.startswith(hub.SCHEME):
        return config.get("repo") == hub.parse(base.uri).repo
    return manifest.execution.get("location") == base.uri


def name_of(platform: Platform, digest: str, offer: Offer) -> str | None:
    """The first name in the offer of the base with a digest; of others the repository or the place; None when it is not in the store."""
    try:
        manifest = platform.store.recorded(platform.catalog.ref(digest))
    except FtError:
        return None
    named = next((name for name, base in offer.bases.items() if is_of(manifest, base)), None)
    return named or manifest.config.get("repo")


def digest_of(platform: Platform, line: str, base: BaseModel) -> str | None:
    """The digest of the base that a line trains on: as pinned for it, else the newest of that base. None before it was ever fetched."""
    pinned = base.revision or platform.catalog.pinned(line, base.uri)
    wanted = Base(uri=base.uri, revision=pinned)
    found = [manifest for manifest in platform.store.all(BASE_KIND) if is_of(manifest, wanted)]
    return max(found, key=lambda manifest: manifest.created_at).digest if found else None


def matches(name: str | None, digest: str, *, asked: str, offer: Offer) -> bool:
    """True when `?base_model=` asks for this base: by a name of the offer, with or without `@sha256:...`."""
    said, _, sha = asked.partition("@sha256:")
    if sha and not digest.startswith(sha):
        return False
    return said in aliases_of(name, offer.bases)


def aliases_of(name: str | None, bases: Mapping[str, Base]) -> set[str]:
    """Every name of the offer that means the same base."""
    if name is None or name not in bases:
        return {name} if name else set()
    return {other for other, base in bases.items() if base.uri == bases[name].uri}
