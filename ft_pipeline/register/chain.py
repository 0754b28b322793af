"""The ancestors of an artifact as a tree, walked from manifests: each recorded digest is compared with the one that is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import IntegrityError
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Manifest, Ref


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One artifact in a role, with its parents."""

    role: str
    manifest: Manifest
    parents: tuple[Link, ...]

    @property
    def ref(self) -> Ref:
        """The artifact."""
        return self.manifest.ref


def walk(store: Store, role: str, ref: Ref) -> Link:
    """The tree from an artifact to the raw bytes. Raises IntegrityError at the first missing or replaced ancestor."""
    manifest = store.manifest(ref.kind, ref.fingerprint)
    if manifest is None or manifest.digest != ref.digest:
        found = "is missing" if manifest is None else f"has digest {manifest.digest[:12]}"
        raise IntegrityError(
            f"the {role} {ref.path} {found}, its child recorded {ref.digest[:12]}",
            why="A model is only as good as every ancestor it names.",
            cure="restore the folder from a backup, or run the recipe again",
        )
    parents = tuple(walk(store, r, parent) for r, parent in sorted(manifest.parents.items()))
    return Link(role=role, manifest=manifest, parents=parents)


def distinct(*roots: Link) -> list[Link]:
    """Every artifact of the trees once, the roots first, then by kind and digest."""
    found: dict[str, Link] = {root.ref.digest: root for root in roots}
    for link in sorted((x for root in roots for x in _all(root)), key=lambda x: (x.ref.kind, x.ref.digest)):
        found.setdefault(link.ref.digest, link)
    return list(found.values())


def manifests_of(store: Store, ref: Ref) -> dict[str, Manifest]:
    """Digest -> manifest of an artifact and everything that it was made of, the artifact first. Raises IntegrityError."""
    return {link.ref.digest: link.manifest for link in distinct(walk(store, ref.kind, ref))}


def by_role(root: Link, role: str) -> Link:
    """The nearest ancestor in a role: a reward model among the parents has data and a base of its own. Raises IntegrityError without one."""
    level = [root]
    while level:
        for link in level:
            if link.role == role:
                return link
        level = [parent for link in level for parent in link.parents]
    raise IntegrityError(f"{root.ref.path} has no ancestor in the role {role!r}")


def lineage(links: list[Link]) -> list[dict[str, Any]]:
    """The artifacts as JSON values: role, kind, digest, fingerprint, files, counts, parents."""
    return [
        {
            "role": link.role,
            "kind": link.ref.kind,
            "digest": link.ref.digest,
            "fingerprint": link.ref.fingerprint,
            "files": {name: entry.logical or entry.sha256 for name, entry in link.manifest.files.items()},
            "counts": dict(link.manifest.counts),
            "parents": {role: ref.digest for role, ref in link.manifest.parents.items()},
        }
        for link in links
    ]


def text_tree(root: Link) -> str:
    """The tree in text, one artifact a line: role, kind, first 12 digits of the digest. A shared ancestor is drawn once."""
    return "\n".join([_line(root), *_branches(root, "", set())])


def _branches(link: Link, indent: str, drawn: set[str]) -> Iterator[str]:
    for i, parent in enumerate(link.parents):
        last = i == len(link.parents) - 1
        above = " (above)" if parent.ref.digest in drawn and parent.parents else ""
        yield f"{indent}{'`-- ' if last else '|-- '}{_line(parent)}{above}"
        if not above:
            drawn.add(parent.ref.digest)
            yield from _branches(parent, indent + ("    " if last else "|   "), drawn)


def _line(link: Link) -> str:
    name = link.role if link.role == link.ref.kind else f"{link.role} ({link.ref.kind})"
    return f"{name} {link.ref.digest[:12]}"


def _all(link: Link) -> Iterator[Link]:
    yield link
    for parent in link.parents:
        yield from _all(parent)
