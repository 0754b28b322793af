"""Trainings that a base change proposes: the adapter did not make it onto the new base, and the recipe could be trained there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ft_pipeline.gate.artifact import RECERTIFIED_KIND
from ft_pipeline.gate.bump.recertify import read_recertification
from ft_pipeline.gate.bump.verdict import RETRAINS, Recertification
from ft_pipeline.recipe import Recipe
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A model line that could be trained on the base that is live now."""

    key: str
    uri: str
    revision: str
    """Of the live base: what the line would be pinned to."""
    verdict: Recertification


def retrain_command(key: str) -> str:
    """What starts the training of a model line on its live base."""
    return f"ft-pipeline bump retrain {key}"


def proposed(catalog: Catalog, store: Store, recipes: Iterable[Recipe]) -> Iterator[Proposal]:
    """The open proposals of these recipes. A recipe that names its revision itself is left alone: a person moves it."""
    for recipe in recipes:
        heads = catalog.heads(recipe.key)
        report, base = heads.get("eval_report"), heads.get("base_model")
        if report is None or base is None or report.kind != RECERTIFIED_KIND or recipe.base_model.revision:
            continue
        artifact = store.fetch(report)
        verdict = Recertification(read_recertification(artifact)["verdict"])
        about = artifact.manifest.parents
        if about["base"] == base and about["adapter"] == heads.get("adapter") and verdict in RETRAINS:
            revision = revision_of(store.recorded(base))
            yield Proposal(key=recipe.key, uri=recipe.base_model.uri, revision=revision, verdict=verdict)


def repin(catalog: Catalog, proposal: Proposal) -> None:
    """Pins the line to the live base, so that its next run trains there."""
    if catalog.pinned(proposal.key, proposal.uri) != proposal.revision:
        catalog.pin(proposal.key, proposal.uri, proposal.revision)


def revision_of(base: Manifest) -> str:
    """The commit, or the content digest of a folder or bucket, of a `base_model` artifact."""
    return str(base.config.get("revision") or base.config.get("content"))
