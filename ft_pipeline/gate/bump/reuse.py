"""Finds what was measured of an adapter before: the report on its old base, also one that other gate code made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ft_pipeline.gate.artifact import RECERTIFIED_KIND, suite_sha256
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.manifest import Ref, Spec

REPORT_KIND = "eval_report"
MEASURED = ("holdout", "benchmarks", "safety", "judge")
"""Fields of a report's config that say what was asked; the rest is the policy, which judges anew."""


def report_before(
    store: Store, catalog: Catalog, spec: Spec, *, compute: Callable[[Mapping[str, Ref]], Artifact]
) -> Artifact:
    """The report of a spec: found, else the newest of the same parents and questions, else computed.

    An older one is good enough: every question is compared by the digest of its tokens before two answers are paired.
    """
    if found := store.find(spec):
        return found
    older = [
        manifest
        for ref in catalog.children(spec.parents["adapter"].digest)
        if ref.kind == REPORT_KIND and (manifest := store.manifest(ref.kind, ref.fingerprint)) is not None
        if dict(manifest.parents) == dict(spec.parents) and all(manifest.config.get(n) == spec.config.get(n) for n in MEASURED)
    ]  # fmt: skip
    if older:
        return store.fetch(max(older, key=lambda m: m.created_at).ref)
    return compute(spec.parents)


def certify(catalog: Catalog, artifact: Artifact, *, passed: bool) -> list[str]:
    """Writes down for every registered version of the adapter whether it may stand on the new base. Returns their labels."""
    if artifact.ref.kind != RECERTIFIED_KIND:
        return []
    parents = artifact.manifest.parents
    versions = [v for v in catalog.models() if v.adapter_digest == parents["adapter"].digest]
    for version in versions:
        catalog.add_report(version.id, parents["base"].digest, suite_sha256(parents), passed, artifact.ref.digest)
    return [v.label for v in versions]
